"""One training loop for the tokenizer and both generators, one process or many ranks: enter by `launch.run_training`.

In reading order:

    config              the settings that all runs share
    task                what the loop is given: an objective with its data
    tokenizer           the tokenizer's run and objective (`train_tokenizer`)
    generator           a generator's run and objective (`train_generator`)
    launch              from a run to a trained folder, on this rank or through Ray Train (`run_training`)
    loop                when to log, validate, draw, save and stop (`train`)
    step                one step: forward, backward and update of every network that learns in it
    feed                what a step is given, made ready while the step before runs
    engine              the three engines below a step: a plain one, DeepSpeed without ZeRO and with it
    deepspeed_settings  the dictionary DeepSpeed is given
    state               `trainer.json`: where a training stands, and what must be equal for it to go on
    saving              checkpoints of all ranks, and the way back from them
    interrupt           ending early and in order: signals, the file `stop`, the watchdog
    report              what a rank tells: rows of numbers, a bar, pictures
    sinks               places besides metrics.jsonl: Weights & Biases, TensorBoard
    samples             samples of a generator in training (loads eval)
    devices             what devices can do, stated and measured: the table configs/devices.yaml (`find_device`)
    costs               parameters, operations, memory of networks
    scaling             a training on so many devices: micro batch, time, communication, checkpoints (`outlook`)
    plan                the lines of a dry run (`plan_training`, `plan_generators`)
    drivers             trainings in processes of their own: a pair, a queue (`train_generators`, `train_queue`)
"""
