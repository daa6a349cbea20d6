"""Pictures as PNG bytes, drawn by matplotlib; nothing is written to disk.

In reading order: `drawing` (themes, mosaics, colours of maps), `paintings` (an image taken apart into its stages:
`paint_samples`, `paint_images`), `sheets` (sheets of images), `plots` (curves, bars, scatters).
"""

from eval.pictures.paintings import paint_images, paint_records, paint_samples, paint_sequences, paint_tokenized
from eval.pictures.sheets import painting_rows, sample_grid

__all__ = [
    "paint_images",
    "paint_records",
    "paint_samples",
    "paint_sequences",
    "paint_tokenized",
    "painting_rows",
    "sample_grid",
]
