"""vLLM beside the plain PyTorch reference, both with one model, asked the same things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cope_model.reference import Generation, Reference

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_PLUGINS": "cope",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def engine_environment() -> Iterator[None]:
    """vLLM in this process, on the CPU."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _ENVIRONMENT.items():
            environment.setenv(name, value)
        yield


class Engine:
    """vLLM and the reference.

    Args:
        directory: the checkpoint.
        tokens: length of the answers that are compared.
        overrides: of `config.json`.
        reference: instead of the directory's own.
        dtype: vLLM's; the reference computes in fp32.
        options: vLLM's.
    """

    def __init__(
        self,
        directory: Path,
        tokens: int,
        overrides: dict[str, Any] | None = None,
        reference: Reference | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        from vllm import LLM

        self.tokens = tokens
        self.reference = reference or Reference.load(directory, **(overrides or {}))
        self.llm = LLM(
            str(directory),
            dtype=dtype,
            enforce_eager=True,
            max_model_len=4096,
            block_size=32,
            max_num_batched_tokens=256,  # shorter than most prompts: prefill comes in chunks
            hf_overrides=overrides or {},
            **options,
        )

    def answer(self, content: list[dict[str, Any]] | str, **options: Any) -> Any:
        """vLLM's answer to what its chat route makes of such content."""
        from vllm import SamplingParams

        parts = [] if isinstance(content, str) else content
        media: dict[str, list[Any]] = {}
        for part in parts:
            if part["type"] != "text":
                media.setdefault(part["type"], []).append(part[part["type"]])
        prompt: dict[str, Any] = self.reference.tokenizer.apply_chat_template(
            [{"role": "user", "content": self._template_content(parts, media) if parts else content}],
            add_generation_prompt=True,
            return_dict=True,
        )
        request: dict[str, Any] = {"prompt_token_ids": prompt["input_ids"]}
        if media:
            request["multi_modal_data"] = media
        sampling = SamplingParams(temperature=0, max_tokens=self.tokens, logprobs=0)
        return self.llm.generate(request, sampling, use_tqdm=False, **options)[0]

    def _template_content(self, parts: list[dict[str, Any]], media: dict[str, list[Any]]) -> Any:
        config = self.reference.model.config
        if config.model_type == "cope_videolm":  # whose own template takes parts
            return [part if part["type"] == "text" else {"type": part["type"]} for part in parts]
        # Others take text: media first, each on a line of its own.
        lines = [config.placeholders[name] for name, items in media.items() for _ in items]
        return "\n".join([*lines, *(part["text"] for part in parts if part["type"] == "text")])

    def expected(self, content: list[dict[str, Any]] | str) -> Generation:
        """The reference's answer."""
        return self.reference.generate([{"role": "user", "content": content}], self.tokens)

    def check(self, content: list[dict[str, Any]] | str, **options: Any) -> Any:
        """Assert that both answers are the same, log-probabilities to 1e-4; returns vLLM's."""
        expected, answer = self.expected(content), self.answer(content, **options)
        assert answer.prompt_token_ids == expected.prompt_token_ids
        output = answer.outputs[0]
        assert list(output.token_ids) == expected.token_ids
        found = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
        assert found == pytest.approx(expected.logprobs, abs=1e-4)
        return answer
