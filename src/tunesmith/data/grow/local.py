"""The local engine: llama.cpp on a GGUF file, asked through the one chat renderer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.data.grow.ask import Ask, Budget, Refused, Reply
from tunesmith.engine import Sampling, open_backend
from tunesmith.errors import DataError

__all__ = ["LocalEngine"]


class LocalEngine:
    """One GGUF model in a child process of llama.cpp. Safe for use from several threads.

    Args:
        model: `embedded`, or a `.gguf` file.
        slots: answers that are written side by side.
        context_tokens: longest prompt and answer together.

    Raises:
        MissingError, ModelError, EnvironmentProblem, EngineError: the model cannot be run here.
    """

    def __init__(self, model: str, *, slots: int = 2, context_tokens: int = 4_096) -> None:
        from tunesmith.config import ModelConfig
        from tunesmith.engine.backends.llama_process import LlamaSettings
        from tunesmith.models import embedded
        from tunesmith.models.chat import ChatRenderer
        from tunesmith.models.load import load_tokenizer, resolve_base

        base = resolve_base(ModelConfig(base=model))
        path = embedded.embedded_gguf() if model == "embedded" else Path(model).expanduser()
        self._renderer = ChatRenderer(load_tokenizer(base))
        self._name = base.name
        settings = LlamaSettings(context_tokens=context_tokens, slots=slots)
        self._backend = open_backend("llama_cpp", path, settings)

    @property
    def about(self) -> Mapping[str, Any]:
        """Engine and model."""
        return {"endpoint": "local:llama.cpp", "model": self._name}

    def ask(self, ask: Ask, budget: Budget) -> Reply | Refused:
        """See `Engine.ask`."""
        budget.count_request()
        prompt = self._renderer.prompt_ids(ask.messages)
        sampling = Sampling(
            max_tokens=ask.max_answer_tokens, temperature=ask.temperature, seed=ask.seed
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            answer = self._backend.generate([prompt], sampling)[0]
        except DataError as error:
            return Refused(error.what, 1, now)
        tokens = answer.prompt_tokens + len(answer.token_ids)
        return Reply(answer.text, answer.finish_reason, tokens, 1, now)

    def close(self) -> None:
        """Stop the child."""
        self._backend.close()
