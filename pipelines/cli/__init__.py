"""The command line `nvg`: enter by `main.main`; the console script comes by `__main__`, which says what to install.

In reading order:

    main      the program and the commands without a group: demo, precompute, sample, ablate, inspect, verify, submit, …
    train     `nvg train …`: the tokenizer, one generator, both
    evaluate  `nvg eval …`: generator, tokenizer, images, reference, sweep, follow, report

A command names its config, its plan and its run; `pipelines.entry.execute` does the rest, the same for all.
"""
