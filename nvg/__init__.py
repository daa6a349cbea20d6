"""Next Visual Granularity generation: the method itself, in plain PyTorch.

One enters by `nvg.load`; to change something, by the rooms below.

model        everything in one object: `load`, `Model`
networks     tokenizer and generators on one device: `Networks`
sequences    what it gives: `Samples`, `Sequences`
folders      where it comes from and goes to: run folders, exported ones, the hub
granularity  stage arithmetic: maps, embeddings, pooling, placing
tokenizer    images ↔ visual granularity sequences: `Tokenizer`
models       the two generators: `ContentGenerator`, `StructureGenerator`
sampling     Algorithm 2: `sample`
training     objectives and the parts of a step
layers       pieces of networks
records      sequences on disk: `RecordDataset`
checkpoints  weights on disk: `load_network`, `save_weights`
pixels       between bytes and the range of the networks
pictures     pictures of any size, cut as training images are
tiles        images and maps laid out as one picture
class_names  classes as a user asks for them
precision    fp32, TF32 or bf16, and which devices have it: `settle_precision`
randomness   counter-based random numbers: `uniforms`
json_files   JSON files whose form is checked to the last field: `read_json`
bounds       settings that know their own range: `check_fields`
errors       the exception that is written for people: `UserError`
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvg.model import Model, load
    from nvg.sampling import SamplingConfig
    from nvg.sequences import Samples, Sequences

__all__ = ["Model", "Samples", "SamplingConfig", "Sequences", "load"]
_HOMES = {
    "Model": "nvg.model",
    "load": "nvg.model",
    "Samples": "nvg.sequences",
    "Sequences": "nvg.sequences",
    "SamplingConfig": "nvg.sampling",
}


def __getattr__(name: str) -> Any:
    """The front door, opened when it is used: whoever needs one room does not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nvg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
