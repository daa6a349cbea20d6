"""Images become visual granularity records: enter by `job.precompute`.

In reading order:

    config   the settings of the job: `PrecomputeConfig`
    plan     what will be done, decided before it starts: units of images, and where each piece goes (`make_plan`)
    job      the driver: opens the source, hands units to actors, merges (`precompute`; `plan_precompute` for a dry run)
    inputs   of which bytes records were made, and which images have changed since
    unit     one unit on an actor: read, encode, cluster, write, commit (`encode_unit`)
    beside   what is stored beside a record for the alignment of hidden tokens (`open_repa_stream`)
    merge    the finished units become one data set (`merge_parts`)
    verify   `nvg verify`: whether a data set is whole, byte for byte (`verify_records`)
"""
