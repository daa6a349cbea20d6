"""Ray and DeepSpeed jobs over the method, and the `nvg` command line.

In reading order, from what a command is told to the command line over all of them. A room imports from those before it
in the import order of `pyproject.toml` alone, and nothing is re-exported here, so that `nvg --help` stays quick.

    written            what is written for a key becomes a value of its type, at once or not at all: `typed_section`
    configuration      a dataclass, a YAML file and settings become one checked config: `load_config`
    entry              arguments, dry runs and exit codes of every program: `execute`, `program`, `guard`
    run_folder         what a training's folder holds besides checkpoints, and its lock: `write_provenance`, `run_lock`
    checkpoints        a checkpoint is whole or it is not there: `begin` and `commit`, `resolve_checkpoint`
    sources/           images of folders, tar shards, digits: `open_source`
    precompute/        images become records, on Ray actors: `job.precompute`; `verify.verify_records`
    batches/           which images or records a rank sees in a step: `images.image_source`, `records.generator_source`
    train/             one loop for all trainings: `launch.run_training`, by way of `tokenizer.train_tokenizer`,
                       `generator.train_generator` or, for both generators at once, `drivers.train_generators`
    structure_control  what samples are made to follow: `load_control`
    sample             images of chosen classes: `sample_images`
    inspect            images or records at every stage, as a picture: `inspect`
    evaluate/          scores: `generator.run_evaluate` and one entry a command beside it
    release            the authors' checkpoints in and out: `import_release`, `export_release`
    gallery            the paper's figures from one's own model: `draw_gallery`
    app/               a page on which a layout is drawn and painted: `page.run_app`
    experiment/        a file of steps, each done once, in their order, with a status: `run.run_experiment`
    ablate/            the paper's ablations under one budget: `study.run_ablate`
    doctor             what the machine has of what is needed: `run_doctor`
    cli/               the command line over all of this: `main.main`
"""
