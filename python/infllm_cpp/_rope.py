"""How a context rotates keys and queries: parameters that stretch positions."""

from __future__ import annotations

from dataclasses import dataclass

from . import _core
from ._choices import ROPE_SCALING_TYPES, UNSPECIFIED, choice
from ._loading import check_int, check_range

_MAX_POSITIONS = 2**31 - 1


@dataclass(frozen=True)
class RopeOptions:
    """Names and meaning as of `Llama`; all defaults are what the model says."""

    rope_scaling_type: int = UNSPECIFIED
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_orig_ctx: int = 0

    @classmethod
    def check(
        cls,
        rope_scaling_type: str | int | None,
        rope_freq_base: float,
        rope_freq_scale: float,
        yarn_ext_factor: float,
        yarn_attn_factor: float,
        yarn_beta_fast: float,
        yarn_beta_slow: float,
        yarn_orig_ctx: int,
    ) -> RopeOptions:
        """The options; TypeError or ValueError where one is out of range, or has no effect beside another."""
        numbers = {
            "rope_freq_base": rope_freq_base,
            "rope_freq_scale": rope_freq_scale,
            "yarn_ext_factor": yarn_ext_factor,
            "yarn_attn_factor": yarn_attn_factor,
            "yarn_beta_fast": yarn_beta_fast,
            "yarn_beta_slow": yarn_beta_slow,
            "yarn_orig_ctx": yarn_orig_ctx,
        }
        for name, number in numbers.items():
            if number is None:
                raise TypeError(f"{name} = None is not a number: leave it out")
        scaling = choice("rope_scaling_type", rope_scaling_type, ROPE_SCALING_TYPES)
        if rope_freq_base != 0:
            check_range("rope_freq_base", rope_freq_base, 2, 1e15)
        if rope_freq_scale != 0:
            check_range("rope_freq_scale", rope_freq_scale, 0.01, 100)
        for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
            check_range(name, numbers[name], -1, 1e6)
        check_int("yarn_orig_ctx", yarn_orig_ctx, 0, _MAX_POSITIONS)
        if scaling == ROPE_SCALING_TYPES["none"] and rope_freq_scale not in (0, 1):
            raise ValueError(
                f"rope_freq_scale = {rope_freq_scale} has no effect with rope_scaling_type = 'none': "
                "leave one of them out"
            )
        if yarn_orig_ctx / (rope_freq_scale or 1) > _MAX_POSITIONS:
            raise ValueError(
                f"yarn_orig_ctx = {yarn_orig_ctx} and rope_freq_scale = {rope_freq_scale} give more than "
                f"{_MAX_POSITIONS} positions: lower yarn_orig_ctx"
            )

        def given(value: float) -> float:
            return -1.0 if value < 0 else float(value)

        return cls(
            scaling,
            float(rope_freq_base),
            float(rope_freq_scale),
            given(yarn_ext_factor),
            given(yarn_attn_factor),
            given(yarn_beta_fast),
            given(yarn_beta_slow),
            int(yarn_orig_ctx),
        )

    def changes(self) -> dict[str, float]:
        """Those that are not what the model says, by their names."""
        default = RopeOptions()
        return {name: value for name, value in vars(self).items() if value != getattr(default, name)}

    def check_model(self, model: _core.Model) -> None:
        """ValueError where one is given to a model that has no RoPE."""
        if not model.has_rope():
            for name, value in self.changes().items():
                raise ValueError(f"{name} = {value} has no effect: the model has no RoPE, leave it out")
