// A sheet to draw on, by pointer or keyboard. Its value is a PNG data URL, white where there is ink; "" is an empty sheet.
const SIDE = 256, STEP = 8;
const sheet = element.querySelector("canvas"), cursor = element.querySelector(".cursor");
const ink = sheet.getContext("2d", { willReadFrequently: true });
const colour = getComputedStyle(element).getPropertyValue("--ink-of-pad").trim() || "#0f766e";
let last = null, drawing = false, at = { x: SIDE / 2, y: SIDE / 2 };

const width = () => Number(element.querySelector("input[type=range]").value);
const erasing = () => element.querySelector("input[type=checkbox]").checked;

function stroke(from, to) {
  ink.globalCompositeOperation = erasing() ? "destination-out" : "source-over";
  ink.strokeStyle = colour;
  ink.lineWidth = width();
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(from.x, from.y);
  ink.lineTo(to.x + 0.01, to.y);
  ink.stroke();
}

function place(event) {
  const box = sheet.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * SIDE) / box.width, y: ((event.clientY - box.top) * SIDE) / box.height };
}

function send() {
  const pixels = ink.getImageData(0, 0, SIDE, SIDE);
  let touched = false;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const level = pixels.data[i + 3];
    touched ||= level > 0;
    pixels.data.set([level, level, level, 255], i);
  }
  const mask = document.createElement("canvas");
  mask.width = mask.height = SIDE;
  mask.getContext("2d").putImageData(pixels, 0, 0);
  sent = touched ? mask.toDataURL("image/png") : "";
  props.value = sent;
}

let sent = props.value || "";

function show(url) {
  // What the server put here: an uploaded mask.
  if (url === sent) return;
  sent = url;
  ink.globalCompositeOperation = "source-over";
  if (!url) return ink.clearRect(0, 0, SIDE, SIDE);
  const image = new Image();
  image.onload = () => {
    ink.clearRect(0, 0, SIDE, SIDE);
    ink.drawImage(image, 0, 0, SIDE, SIDE);
    const pixels = ink.getImageData(0, 0, SIDE, SIDE);
    const [red, green, blue] = colour.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([red, green, blue, pixels.data[i]], i);
    ink.putImageData(pixels, 0, 0);
  };
  image.src = url;
}

sheet.addEventListener("pointerdown", (event) => {
  sheet.setPointerCapture(event.pointerId);
  drawing = true;
  last = place(event);
  stroke(last, last);
});
sheet.addEventListener("pointermove", (event) => {
  if (!drawing) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) {
    const next = place(part);
    stroke(last, next);
    last = next;
  }
});
for (const name of ["pointerup", "pointercancel"])
  sheet.addEventListener(name, () => {
    if (drawing) send();
    drawing = false;
  });

function moveCursor() {
  cursor.style.left = `${(100 * at.x) / SIDE}%`;
  cursor.style.top = `${(100 * at.y) / SIDE}%`;
  cursor.style.width = `${(100 * width()) / SIDE}%`;
}

sheet.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way) {
    const next = {
      x: Math.min(SIDE, Math.max(0, at.x + STEP * way[0])),
      y: Math.min(SIDE, Math.max(0, at.y + STEP * way[1])),
    };
    if (event.shiftKey) {
      stroke(at, next);
      send();
    }
    at = next;
  } else if (event.key === " ") {
    stroke(at, at);
    send();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    ink.clearRect(0, 0, SIDE, SIDE);
    send();
  } else return;
  event.preventDefault();
  moveCursor();
});
element.querySelector("input[type=range]").addEventListener("input", moveCursor);
element.querySelector(".clear").addEventListener("click", () => {
  ink.clearRect(0, 0, SIDE, SIDE);
  send();
});
moveCursor();
watch("value", () => show(props.value || ""));

function behind() {
  // The picture of which a part is painted anew.
  sheet.parentElement.style.backgroundImage = props.behind ? `url(${props.behind})` : "";
  sheet.classList.toggle("over-picture", Boolean(props.behind));
}
watch("behind", behind);
behind();
