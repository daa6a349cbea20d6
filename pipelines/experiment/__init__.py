"""An experiment: a file whose sections are steps, each with inputs and outputs, done in their order and only once.

In reading order:

    steps          the file, and its steps: what each reads and writes, how it stands, how it is done: `steps_of`
    images         what the images suffice for, before the first step: `check_images`
    own_images     what is chosen for pictures of one's own, and how long it takes: `choose`
    plan           the order of the steps, what is refused before anything starts, how all of them stand: `make_plan`
    status         all steps in one table, alive while they run: `LiveStatus`, `read_status`
    run            does what is not finished: `run_experiment`, and `plan_experiment` for a dry run
    forecast       what each step would read, compute, hold, send and store on devices that are not here: `forecast`
    forecast_page  shows that: tables, JSON, headers of presets
"""
