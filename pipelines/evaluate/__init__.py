"""`nvg eval …`: scores of generators, of a tokenizer, and of images made elsewhere.

In reading order:

    config      what an evaluation of generators or of images is told; what every evaluation requires
    images      the images of a source: in memory with their labels, or read by index
    generator   `nvg eval generator`: enter by `run_evaluate`; without a reference it compares with the source's images
    against     the same with a reference (`run_against`), and `nvg eval images` (`run_evaluate_images`)
    reference   `nvg eval reference`: statistics of any image set (`run_reference`)
    tokenizer   `nvg eval tokenizer`: reconstructions (`run_evaluate_tokenizer`)
    series      `nvg eval sweep` and `nvg eval follow`: many evaluations against one reference
    table       `nvg eval report`: results beside the paper's (`run_report`); how scores look in the terminal
"""
