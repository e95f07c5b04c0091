"""Which device, precision and engine a call runs on."""

import torch

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines import native_engine
from qinco.engines.torch_engine import Encoder
from qinco.errors import ConfigError
from qinco.model.qinco import Qinco
from qinco.native.library import NativeModel, is_available

# Where layers have fewer weights, bf16 gains little (one core, measured: 24 x 48, 25 us a vector for float32's 27;
# 32 x 64, 131 for 151; 64 x 64, 161 for 358).
_SMALL_MATRIX = 4096


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device called `device`: "auto" is the first GPU, or the processor where there is none.

    Raises ConfigError for a name that torch does not know or a GPU that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {device!r}: give auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ConfigError(f"device={device} is not there: this machine has {count} GPUs; device=cpu runs anywhere")
    elif chosen.type != "cpu":
        raise ConfigError(f"device={device} is not supported: give auto, cpu, cuda or cuda:N")
    return chosen


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bf16; emulated, they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def candidate_dtype(precision: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """The dtype that a model's candidates are evaluated in: "auto" is bf16 where that is fast."""
    is_small = config.embed_dim * config.hidden_dim < _SMALL_MATRIX
    if precision == "bf16" or (precision == "auto" and not is_small and multiplies_bf16_fast(device)):
        return torch.bfloat16
    return torch.float32


def choose_engine(engine: str, config: ModelConfig, device: torch.device) -> str:
    """ "native" or "torch": what `engine`, which may be "auto", comes to for a model on a device.

    Raises ConfigError where the native engine is asked for and cannot run.
    """
    if engine == "torch" or (engine == "auto" and not native_engine.can_run(config, device)):
        return "torch"
    if not native_engine.can_run(config, device):
        reason = (
            "this installation has no compiled kernels" if not is_available() else "the model's tables are too large"
        )
        reason = f"it runs on the processor, not on {device}" if device.type != "cpu" else reason
        raise ConfigError(f"engine=native cannot be used: {reason}; engine=auto takes what can")
    return "native"


def make_encoder(
    model: Qinco, options: EncodeOptions, dtype: torch.dtype, packed: NativeModel | None = None
) -> Encoder | native_engine.NativeEncoder:
    """What searches codes for a model as it is now, with candidates in `dtype`; `packed` is the model packed before."""
    if choose_engine(options.engine, model.config, model.device) == "torch":
        return Encoder(model, options, dtype)
    options.check_model(model.config)
    return native_engine.NativeEncoder(native_engine.pack(model, dtype) if packed is None else packed, options)
