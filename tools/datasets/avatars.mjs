// Draws ten classes of figures as PNG files; started by avatars.py, which installs what is imported here:
//   node avatars.mjs FOLDER SIZE train=1000 judge=100 test=1000
// A figure follows from its class, its part and its number alone. One whose pixels were there before, in whatever part,
// is left out and the next number drawn instead. Prints what CREDITS.txt says, and a digest of all pixels, as JSON.
import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createAvatar } from "@dicebear/core";
import * as styles from "@dicebear/collection";
import { Resvg } from "@resvg/resvg-js";

// The ground of every figure is one of these, whatever the class, so that it does not give the class away.
const GROUNDS = ["b6e3f4", "c0aede", "ffd5dc", "ffdfbf", "c9e8c4", "f4f1e4"];
// No colour is as pale as a ground.
const STRONG = ["0a5b83", "1c799f", "f88c49", "c2185b", "2e7d32", "6a1b9a"];
// Options beside the ground, of bytes that the seed decides. The figures of one class are told apart at 32 pixels.
const CLASSES = {
  "big-smile": [styles.bigSmile, () => ({})],
  "fun-emoji": [styles.funEmoji, (bytes) => ({ rotate: (bytes[0] % 31) - 15, scale: 85 + (bytes[1] % 16) })], // few faces
  identicon: [styles.identicon, () => ({ scale: 93.75 })], // squares of 6 pixels
  lorelei: [styles.lorelei, () => ({})],
  notionists: [styles.notionists, () => ({})],
  "open-peeps": [styles.openPeeps, () => ({})],
  "pixel-art": [styles.pixelArt, () => ({})],
  rings: [styles.rings, () => ({ scale: 90, ringColor: STRONG })],
  shapes: [styles.shapes, () => ({ shape1Color: STRONG, shape2Color: STRONG, shape3Color: STRONG })],
  thumbs: [styles.thumbs, () => ({ shapeColor: STRONG })],
};
const MOST_DRAWN = 20; // drawings for each figure that is kept, before a class counts as too small

const [folder, size, ...counts] = process.argv.slice(2);
const digest = createHash("sha256");
const seen = new Set();
const classes = {};
for (const [name, [style, options]] of Object.entries(CLASSES)) {
  let repeated = 0;
  for (const [part, count] of counts.map((text) => text.split("="))) {
    const below = join(folder, part, name);
    mkdirSync(below, { recursive: true });
    for (let number = 0, kept = 0; kept < Number(count); number++) {
      if (number >= MOST_DRAWN * Number(count)) {
        throw new Error(`${name}: ${number} drawings for ${part} gave ${kept} different figures, expected ${count}`);
      }
      const seed = `${part}-${number}`;
      const own = options(createHash("sha256").update(`${name}/${seed}`).digest());
      const avatar = createAvatar(style, { seed, backgroundColor: GROUNDS, ...own });
      const picture = new Resvg(avatar.toString(), { fitTo: { mode: "width", value: Number(size) } }).render();
      const pixels = createHash("sha256").update(picture.pixels).digest("hex");
      if (seen.has(pixels)) {
        repeated++;
        continue;
      }
      seen.add(pixels);
      const file = `${String(number).padStart(5, "0")}.png`;
      digest.update(`${part}/${name}/${file} ${pixels}\n`);
      writeFileSync(join(below, file), picture.asPng());
      kept++;
    }
  }
  classes[name] = { ...style.meta, repeated };
}
process.stdout.write(JSON.stringify({ classes, digest: digest.digest("hex") }));
