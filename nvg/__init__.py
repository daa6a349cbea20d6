"""Next Visual Granularity generation: the method itself, in plain PyTorch.

granularity  stage arithmetic: maps, embeddings, pooling, placing
tokenizer    images ↔ visual granularity sequences: `Tokenizer`
models       the two generators: `ContentGenerator`, `StructureGenerator`
sampling     Algorithm 2: `sample`
training     objectives and the parts of a step
layers       pieces of networks
records      sequences on disk: `RecordDataset`
checkpoints  weights on disk: `load_network`, `save_weights`
pixels       between bytes and the range of the networks
precision    fp32, TF32 or bf16, and which devices have it: `settle_precision`
randomness   counter-based random numbers: `uniforms`
json_files   JSON files whose form is checked to the last field: `read_json`
bounds       settings that know their own range: `check_fields`
errors       the exception that is written for people: `UserError`
"""
