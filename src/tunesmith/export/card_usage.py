"""How each form is run: the commands and lines of code of the model card."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping

from tunesmith.config import Form
from tunesmith.export.forms import PATHS, SERVED
from tunesmith.export.licences import is_embedded
from tunesmith.export.parity import FormParity
from tunesmith.export.plan import ExportPlan

__all__ = ["library_line", "usage"]


def usage(plan: ExportPlan, measured: Mapping[Form, FormParity]) -> Iterator[str]:
    """Commands and lines of code for the forms that were made, each as Markdown."""
    ggufs = [PATHS[form] for form in SERVED if form in measured]
    if ggufs:
        yield f"llama.cpp:\n\n```sh\nllama-server -m {ggufs[0]} --jinja --temp 0\n```\n"
        yield f"Ollama {_NOT_RUN}:\n\n```sh\nollama create my-model -f Modelfile\nollama run my-model\n```\n"
    if "merged" in measured:
        yield "transformers:\n\n```python\n" + _TRANSFORMERS + "```\n"
        yield f"vLLM {_NOT_RUN}:\n\n```sh\nvllm serve ./merged\n```\n"
    if "adapter" in measured:
        yield "PEFT, on the base model:\n\n```python\n" + _peft(plan) + "```\n"
    if "gguf-lora" in measured:
        yield (
            "llama.cpp, the adapter on the base model's own GGUF file (not in this bundle):\n\n"
            f"```sh\nllama-server -m base.gguf --lora {PATHS['gguf-lora']} --jinja --temp 0\n```\n"
        )
    for form, packages in _WITH_TRANSFORMERS.items():
        if form in measured:
            yield (
                f"`{form}`: the transformers lines, with `{PATHS[form]}` for `merged`; needs "
                f"`pip install {packages}`.\n"
                if "merged" in measured
                else f"transformers (`pip install {packages}`):\n\n```python\n"
                + _TRANSFORMERS.replace('"merged"', json.dumps(PATHS[form]))
                + "```\n"
            )
    packed = [PATHS[form] for form in _ON_VLLM if form in measured]
    if packed:
        yield f"vLLM {_NOT_RUN}:\n\n```sh\nvllm serve ./{packed[0]}\n```\n"
    if "onnx" in measured:
        yield (
            "onnxruntime-genai (`pip install onnxruntime-genai`):\n\n```python\n" + _ONNX + "```\n"
        )


def library_line(forms: Collection[Form]) -> str:
    """The front matter's line with the library that loads one of these forms; empty for GGUF files and ONNX,
    whose hubs tell them by themselves."""
    if "merged" in forms or any(form in forms for form in _WITH_TRANSFORMERS):
        return "library_name: transformers\n"
    return "library_name: peft\n" if "adapter" in forms else ""


def _peft(plan: ExportPlan) -> str:
    if is_embedded(plan.base):
        return _PEFT_EMBEDDED
    if "/" in plan.base.name:
        return _on_base(plan.base.name)
    return _on_base(f"path/to/{plan.base.name}", "  # the folder with its weights")


def _on_base(name: str, note: str = "") -> str:
    return _PEFT.replace("{note}", note).replace("{base}", json.dumps(name))


_NOT_RUN = "(not run by the export, nor by the tests of tunesmith)"
_ASK = """\
messages = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**inputs, max_new_tokens=128, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
_TRANSFORMERS = (
    """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("merged")
model = AutoModelForCausalLM.from_pretrained("merged")
"""
    + _ASK
)
_WITH_TRANSFORMERS: Mapping[Form, str] = {
    "pruned": "transformers",
    "awq": "transformers compressed-tensors",
    "gptq": "transformers compressed-tensors",
    "bnb-int8": "transformers accelerate bitsandbytes",
    "bnb-nf4": "transformers accelerate bitsandbytes",
    "torchao-int8": "transformers torchao",
    "torchao-int4": "transformers torchao",
}
"""Form -> what transformers needs to load it."""
_ON_VLLM: tuple[Form, ...] = ("awq", "gptq")
_ONNX = """\
import json

import onnxruntime_genai as og

model = og.Model("onnx")
tokenizer = og.Tokenizer(model)
question = json.dumps([{"role": "user", "content": "..."}])
prompt = tokenizer.encode(tokenizer.apply_chat_template(question, add_generation_prompt=True))
settings = og.GeneratorParams(model)
settings.set_search_options(max_length=len(prompt) + 128, do_sample=False)
generator = og.Generator(model, settings)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)[len(prompt):]))
"""
_PEFT = (
    """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base}){note}
model = PeftModel.from_pretrained(base, "adapter")
tokenizer = AutoTokenizer.from_pretrained("tokenizer")
"""
    + _ASK
)
_PEFT_EMBEDDED = (
    """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.config import ModelConfig
from tunesmith.models.load import resolve_base

folder = resolve_base(ModelConfig(base="embedded")).dir  # the dequantised weights
base = AutoModelForCausalLM.from_pretrained(folder)
model = PeftModel.from_pretrained(base, "adapter")
tokenizer = AutoTokenizer.from_pretrained("tokenizer")
"""
    + _ASK
)
