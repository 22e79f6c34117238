"""Files that are hostile from the start: templates, patterns and ONNX graphs that hide what they do."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import ModelError
from tunesmith.export.check import check_model
from tunesmith.export.check.onnx import _INSIDE
from tunesmith.export.check.sandbox import PROBES, render_apart, write_all
from tunesmith.export.patterns import doubtful_settings, values_by_pattern

slow = pytest.mark.slow

BOMB = "{{% if {} %}}{{% set x = messages[0]['role'] * 10**11 %}}{{% endif %}}"
UNKNOWN = "messages[0]['content'] not in ['Hi', 'Be brief.']"


def test_it_is_not_enough_to_behave_for_the_known_probes():
    known = {turn["content"] for probe in PROBES for turn in probe}
    bomb = BOMB.format(f"messages[0]['content'] not in {sorted(known)}")
    assert "MemoryError" in render_apart(bomb + "{{ messages[0]['content'] }}", {})["error"]


def test_each_conversation_is_written_or_refused_on_its_own():
    template = "{% if add_generation_prompt %}{{ raise_exception('no opening') }}{% endif %}{{ messages[0].content }}"
    orders = [([{"role": "user", "content": "é"}], opening) for opening in (False, True)]
    assert write_all(template, {}, orders) == [("é", ""), (None, "TemplateError: no opening")]
    assert write_all('{{ "\\ud800" }}', {}, orders)[0][0] is None


@slow
@pytest.mark.parametrize(
    ("condition", "check"),
    [(UNKNOWN, "template-broken"), ("messages[0]['content'] == 'a'", "template-renderer")],
)
def test_no_template_runs_in_the_process_that_checks(make, tmp_path, condition, check):
    make.short(tmp_path / "model")
    path = tmp_path / "model/chat_template.jinja"
    path.write_text(BOMB.format(condition) + path.read_text())
    (found,) = check_model(tmp_path / "model").findings
    assert (found.severity, found.check, found.file) == ("error", check, path.name)
    assert "MemoryError" in found.what
    assert found.fix


@slow
def test_the_limited_child_writes_what_transformers_writes(make, tmp_path):
    from tunesmith.export.check.apart import write_apart
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer

    make.short(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    odd = (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
        "{{ messages[:1] | tojson(indent=1, separators=(',', ':'), sort_keys=true) }}{{ eos_token }}"
        "{% set ns = namespace(a=dict(b=1)) %}{{ ns.a }}{% for m in messages %}{% break %}{% endfor %}"
    )
    for before in ("", odd):
        tokenizer.chat_template = before + tokenizer.chat_template
        plain, apart = ChatRenderer(tokenizer), ChatRenderer(tokenizer, write_apart)
        assert plain.probe == apart.probe
        assert plain.stop_ids == apart.stop_ids


@slow
def test_a_merge_and_an_export_try_a_template_in_the_limited_child_first(merging, tmp_path):
    from tunesmith.export.check.apart import refuse_endless_template
    from tunesmith.export.merge import Asked, run
    from tunesmith.models.load import load_tokenizer

    place = shutil.copytree(merging.base.dir, tmp_path / "model")
    path = place / "chat_template.jinja"
    path.write_text(BOMB.format(UNKNOWN) + path.read_text())
    with pytest.raises(ModelError, match="chat template cannot be rendered: MemoryError"):
        run(Asked(models=(str(place), str(place)), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match=re.escape(str(place))):
        refuse_endless_template(load_tokenizer(place), place)


MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in range(12)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.10.down_proj")
] + ["lm_head", "model.embed_tokens"]
TAKEN = (
    "q_proj",
    "layers.1.mlp.up_proj",
    "model.layers.0.self_attn.q_proj",
    r"model\.layers\.0\..*",
    r"layers\.0.*q_proj",
    r".*\.(q|v)_proj",
    r"(?:q|k|v)_proj|lm_head",
    r"layers\.[0-5]\.mlp\.up_proj",
    r"layers\.\d+\.self_attn\.[qk]_proj",
    r"^model.layers.\d{1,2}.mlp.*",
    r"experts\.\d{2,}\.(?:down|up)_pro?j$",
    r".*layers\.3\..*v_proj",
)


@given(st.lists(st.sampled_from(TAKEN), unique=True))
def test_a_layer_gets_the_value_of_the_pattern_that_peft_takes(patterns):
    table = {pattern: number for number, pattern in enumerate(patterns)}
    wanted = {}
    for module in MODULES:
        for pattern, number in table.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                wanted.setdefault(module, number)
    assert values_by_pattern(table, MODULES, "it") == wanted


REFUSED = {
    "([a-z0-9_.]+)+!": "repeats a group",
    "(a|a)*!": "repeats a group",
    "a**": "repeats nothing, or a repeat",
    r"(a)\1": "is not run here",
    "(?<=a)a": "repeats nothing",
    "(?P<n>a)": "repeats nothing",
    "a?" * 60 + "a" * 60: "could take hours",
    "(a|a)" * 60 + "!": "could take hours",
    ".*" * 20 + "!": "could take hours",
    ".*.*.*.*.*.*!": "could take hours",
    "a" * 501: "501 characters",
    "(" * 9 + "a" + ")" * 9: "groups inside of each other",
    "(": "without the other one",
    ")a(": "without the other one",
    "[a": "is not run here",
    "a{99999999999}": "no regular expression",
    "[z-a]": "no regular expression",
}


@pytest.mark.parametrize("pattern", REFUSED, ids=range(len(REFUSED)))
def test_a_pattern_that_can_take_for_ever_is_refused_before_it_is_run(pattern):
    with pytest.raises(ModelError) as found:
        values_by_pattern({"q_proj": 1, pattern: 2}, MODULES, "it")
    assert REFUSED[pattern] in found.value.why
    assert repr(pattern)[:20] in found.value.what
    assert found.value.fix


def test_a_bound_on_the_work_knows_how_long_and_how_many_the_names_are():
    pattern = {".*a.*b.*!": 1}
    assert values_by_pattern(pattern, ["a" * 50] * 100, "it") == {}
    with pytest.raises(ModelError, match="it holds"):
        values_by_pattern(pattern, ["a" * 5_000], "it")


def test_no_patterns_give_no_values_and_a_list_is_no_table():
    assert values_by_pattern(None, MODULES, "it") == values_by_pattern({}, MODULES, "it") == {}
    assert values_by_pattern({"q_proj": 4}, [], "it") == {}
    with pytest.raises(ModelError, match="q_proj"):
        values_by_pattern(["q_proj"], MODULES, "it")


UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|o_proj)))"
)


def test_expressions_that_peft_runs_itself_are_doubted_when_they_can_take_for_ever():
    sound = (
        UNSLOTH,
        r".*\.(q|v)_proj",
        r"^(?!.*vision).*(?:q|v)_proj$",
        "all-linear",
        "layers",
        None,
    )
    assert not list(doubtful_settings({"target_modules": ["q_proj", "v_proj"]}))
    for one in sound:
        assert not list(doubtful_settings({"target_modules": one, "layers_pattern": [one]})), one
    for one in ("([a-z0-9_.]+)+!", "(a|a)*b", "a?" * 60 + "a" * 60):
        assert [key for key, *_ in doubtful_settings({"exclude_modules": one})] == [
            "exclude_modules"
        ]


MESSAGES = {
    "model": "ModelProto",
    "training": "TrainingInfoProto",
    "graph": "GraphProto",
    "function": "FunctionProto",
    "node": "NodeProto",
    "attribute": "AttributeProto",
    "sparse": "SparseTensorProto",
}


def test_every_field_of_onnx_that_leads_to_a_tensor_is_walked():
    import onnx

    names = {
        "GraphProto": "graph",
        "FunctionProto": "function",
        "TrainingInfoProto": "training",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    for kind, message in MESSAGES.items():
        walked = {
            field.number: names[field.message_type.name]
            for field in getattr(onnx, message).DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.name in names
        }
        known = {number: inner for number, inner in _INSIDE[kind].items() if inner != "domain"}
        known = {n: "tensor" if inner == "initializer" else inner for n, inner in known.items()}
        assert known == walked, kind


def outside():
    from onnx import TensorProto

    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../secret", "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def hidden_in(place):
    """A model with a tensor outside of its folder."""
    from onnx import AttributeProto, SparseTensorProto, helper

    node = helper.make_node("Identity", ["x"], ["y"])
    inner = helper.make_graph([node], "inner", [], [], initializer=[outside()])
    constant = helper.make_node("Constant", [], ["x"])
    attribute = constant.attribute.add(name="value")
    model = helper.make_model(helper.make_graph([node], "outer", [], []))
    if place == "a tensor of a node":
        attribute.t.CopyFrom(outside())
    elif place == "tensors of a node":
        attribute.tensors.append(outside())
    elif place == "a subgraph":
        attribute.g.CopyFrom(inner)
    elif place == "subgraphs in a subgraph":
        deeper = helper.make_node("If", ["c"], ["y"], then_branch=inner)
        attribute.graphs.append(helper.make_graph([deeper], "middle", [], []))
    elif place == "a sparse tensor of a node":
        attribute.sparse_tensor.CopyFrom(SparseTensorProto(values=outside()))
    elif place == "a sparse initializer":
        model.graph.sparse_initializer.append(SparseTensorProto(indices=outside()))
    elif place == "a function":
        attribute.t.CopyFrom(outside())
        model.functions.append(helper.make_function("d", "f", [], ["x"], [constant], []))
        constant = node
    elif place == "a function's default":
        default = AttributeProto(name="a", type=AttributeProto.TENSOR, t=outside())
        function = helper.make_function("d", "f", [], ["y"], [node], [])
        function.attribute_proto.append(default)
        model.functions.append(function)
    else:
        model.training_info.add().algorithm.CopyFrom(inner)
    model.graph.node.append(constant)
    return model


PLACES = (
    *("a tensor of a node", "tensors of a node", "a subgraph", "subgraphs in a subgraph"),
    *("a sparse tensor of a node", "a sparse initializer", "a function", "a function's default"),
    "training",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_outside_of_the_folder_is_found_wherever_it_hides(tmp_path, place):
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.onnx").write_bytes(hidden_in(place).SerializeToString())
    (found,) = check_model(tmp_path / "m").findings
    assert (found.severity, found.check, found.where) == ("error", "link-outside", "tensor hidden")


def test_of_a_location_that_is_given_twice_the_last_counts_as_for_readers(tmp_path):
    from onnx import helper

    tensor = outside()
    inside = tensor.SerializeToString().replace(b"../secret", b"secret__1")
    node = helper.make_node("Identity", ["hidden"], ["y"])
    model = helper.make_model(helper.make_graph([node], "outer", [], []))
    tensor.external_data.insert(0, type(tensor).FromString(inside).external_data[0])
    model.graph.initializer.append(tensor)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/secret__1").write_bytes(bytes(16))
    (tmp_path / "m/model.onnx").write_bytes(model.SerializeToString())
    assert {one.check for one in check_model(tmp_path / "m").findings} == {"link-outside"}


def test_graphs_inside_of_each_other_without_end_are_a_finding(tmp_path):
    def message(number, content):
        size, out = len(content), bytearray([number << 3 | 2])
        while size > 0x7F:
            out.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes(out) + bytes([size]) + content

    graph = b""
    for _ in range(60):
        graph = message(1, message(5, message(6, graph)))  # Graph of a node's attribute.
    (tmp_path / "model.onnx").write_bytes(message(7, graph))
    (found,) = check_model(tmp_path / "model.onnx").findings
    assert found.check == "onnx-structure"
    assert "inside of each other" in found.what


def test_an_adapter_whose_patterns_hang_is_no_sound_one(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (4, 8), "B": (8, 4)}
    tensors = {name.format(half): np.ones(shape, np.float32) for half, shape in shapes.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config |= {"rank_pattern": {"([a-z0-9_.]+)+!": 4}, "alpha_pattern": {"(a|a)*b": 1}}
    config |= {"exclude_modules": "(a|a)*b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = [one for one in check_model(tmp_path).findings if one.check == "adapter-pattern"]
    assert [one.where for one in found] == [
        f"key {key}" for key in ("rank_pattern", "alpha_pattern", "exclude_modules")
    ]
    assert all(one.fix and "for ever" in one.why for one in found)
