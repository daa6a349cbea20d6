"""Training: from a run's configuration to checkpoints; one loop for the tokenizer and both generators.

One enters by `train_generator` (in generator), `train_tokenizer` (tokenizer) or `train_generators` (drivers). The
rooms, in reading order:

    config               what every run's configuration has
    generator            the two generators' configurations, objectives, data and first weights
    tokenizer            the tokenizer's
    task                 what the loop is given: objective, data and what belongs to them
    launch               from a configuration to the loop: in this process or through Ray Train
    loop                 when to step, log, validate, draw, save and stop
    step                 one training step
    engine               forward, backward, update: plain, DeepSpeed without ZeRO, DeepSpeed with it
    deepspeed_settings   DeepSpeed's dictionary
    saving, state        checkpoints of all ranks, going on from them; what must be equal for that
    interrupt            ending early and in order, and ranks that hang
    report, sinks        rows of numbers, bars, pictures and where they go; where the time goes
    samples              pictures of a generator's samples (loads eval)
    costs, plan          parameters, operations, memory and hours; the lines of --dry-run
    drivers              trainings in processes of their own: both generators at once, the ablation's queue
"""
