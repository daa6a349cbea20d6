# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # The method in ten cells
#
# You need a model. `make demo` trains one on handwritten digits and puts it into `runs/demo`.
# Each cell says one thing and shows it.
#
# To run this page as a notebook, from the folder of the clone:
#
#     .venv/bin/jupytext --to ipynb docs/tour.py --output tour.ipynb
#     .venv/bin/jupyter execute --inplace tour.ipynb
#
# VS Code and JupyterLab with jupytext open `docs/tour.py` as it is.
#
# **1. A model.** PyTorch is enough to load it. The line below the cell says what it is.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import nvg
from nvg.tiles import map_colours

model = nvg.load("runs/demo")


def show(pictures, titles, height=1.4):
    """Pictures side by side, each below its title."""
    _, places = plt.subplots(1, len(pictures), figsize=(height * len(pictures), height + 0.3), squeeze=False)
    for place, picture, title in zip(places[0], pictures, titles, strict=True):
        place.imshow(np.squeeze(picture), cmap="gray")
        place.set_title(title, fontsize=9)
        place.axis("off")
    plt.show()


model

# %% [markdown]
# **2. A picture.** Any size will do: the model cuts it to its own square.

# %%
digits = load_digits()
picture = (digits.images[3] * 255 / 16).astype(np.uint8)
show([picture], [f"a {digits.target[3]}, {picture.shape[0]}×{picture.shape[1]} pixels"])

# %% [markdown]
# **3. The picture becomes a sequence.** Stage 0 says one number, stage 1 two numbers, stage 2 four.
# Each number names an entry of the codebook: a *content id*. Ids are half of the sequence.

# %%
parts = model.encode(picture)
stages = range(parts.num_stages)
for stage in stages:
    print(f"stage {stage}:", *parts.ids(stage)[0])

# %% [markdown]
# **4. The structure maps.** They are the other half. A map says where each token of its stage is painted: one colour
# is one token. Every stage halves each region of the stage before.

# %%
maps = [map_colours(parts.maps(stage)[0], stage) for stage in stages]
show(maps, ["1 token", *(f"{2**stage} tokens" for stage in stages[1:])])

# %% [markdown]
# **5. Stage by stage.** Each stage adds what the stages before have left out: first the rough shape, then the strokes.
# The number is the mean distance to the last stage, in grey levels.

# %%
painted = [parts.decode(stage)[0] for stage in stages]
distances = [np.abs(one.astype(int) - painted[-1]).mean() for one in painted]
show(painted, [f"{distance:.0f} levels off" for distance in distances])

# %% [markdown]
# **6. The structure generator.** It draws the maps of a class. Here are four layouts of a three, at stage 2.

# %%
drawn = model.sample(3, per_class=4, seed=0)
show([map_colours(one, 2) for one in drawn.maps(2)], [f"number {number}" for number in range(4)])

# %% [markdown]
# **7. The content generator.** It chooses the tokens. The layout of number 0 is given to all four images below; the
# tokens alone are drawn.

# %%
same = model.sample(3, per_class=4, seed=1, structure_from=drawn.structure[0])
show([map_colours(drawn.maps(2)[0], 2), *same.images], ["given", *["drawn"] * 4])

# %% [markdown]
# **8. Both together.** At every stage the structure comes first, then the content. The right picture shows how one
# image was painted: maps above, the canvas below.

# %%
show([model.sample(per_class=6).grid(), drawn.stages(0)], ["six of each class", "a three, stage by stage"], height=4)

# %% [markdown]
# **9. A mask, drawn and painted.** A ring and its surroundings become the two regions of stage 1. The model draws all
# else, as a zero and as an eight.

# %%
y, x = np.mgrid[-1:1:32j, -1:1:32j]
mask = (np.hypot(x, y) < 0.8) & (np.hypot(x, y) > 0.35)
shaped = model.sample([0, 8], per_class=2, structure_mask=mask)
first_map = map_colours(shaped.maps(1)[0], 1)
show([mask * np.uint8(255), first_map, *shaped.images], ["mask", "stage 1", "a 0", "a 0", "an 8", "an 8"])

# %% [markdown]
# **10. A part is kept.** The left half of the picture stays. The right half is painted as a three, an eight and a two.
# A half that does not fit the class asked for is painted less well ([measured](results/edits.md)).
#
# Next: [structure control](control.md), [from Python](python.md), [questions](faq.md).

# %%
keep = np.zeros(picture.shape, bool)
keep[:, : keep.shape[1] // 2] = True
mixed = model.edit(picture, keep=keep, classes=[3, 8, 2])
show([painted[-1], keep * np.uint8(255), *mixed.images], ["picture", "white stays", "as 3", "as 8", "as 2"])
