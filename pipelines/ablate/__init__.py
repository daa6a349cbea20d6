"""`nvg ablate`: the ablations of the paper's Table 2, under one budget for all variants.

In reading order:

    plan     what is trained, recorded and drawn: everything once, however many variants use it (`make_plan`)
    study    trains, records, draws and scores what is not finished yet: enter by `run_ablate`
    report   means and spreads over seeds, which of the paper's orderings show, the table and its files
"""
