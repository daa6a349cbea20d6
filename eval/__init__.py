"""Evaluation: features of images, scores from features, the pool that draws and looks at images, pictures and pages.

In reading order:

    image_sets             images in memory: bytes, labels, features
    locations              files here and in stores, for everybody; the one walk that lists a folder: `walk`
    decoding               from the bytes of an image file to its pixels, for everybody: `decode_image`
    image_files            images in files: read by index, written for other evaluators
    features/              extractors: Inception, or a small network trained on the data; enter by `extract`
    pool/                  Ray actors that compute a set chunk by chunk and go on where they were; `run_chunks`
    scores/                numbers from features and images: FID, IS, precision, recall, the judge, adherence
    results                `results.json`, and how its scores were made
    reference              a reference file on disk, and scores against it: `read_reference`, `results_against`
    evaluation             scores without one, beside those of real images: enter by `evaluate`
    tokenizer_evaluation   scores of a tokenizer's reconstructions
    controlled             samples drawn by a given structure, and how well they follow it: `compare`
    pictures/, pages/      what all of it looks like: PNG bytes and HTML pages

Nothing is re-exported here, so that whoever takes one room does not load them all: matplotlib comes with `pictures`,
torch-fidelity with `features` and `scores`.
"""
