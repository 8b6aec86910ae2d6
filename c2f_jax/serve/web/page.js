"use strict";
const at = (id) => document.getElementById(id);
const VIEWS = { coarse: "first look", fine: "second look", fused: "both looks", calibrated: "answer" };
const MOST_SHOWN = 50; // results: each holds a photo
let waiting = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = (value) => (100 * value).toFixed(value < 0.0995 ? 1 : 0) + " %";

fetch("model").then((answer) => answer.json()).then((model) => {
  at("about").textContent = `The run ${model.run}: ${model.method}, step ${model.step}, knows ${model.classes.length} classes.`;
  document.title = `What does ${model.run} see?`;
}).catch(() => {});

function tell(text) {
  at("status").textContent = text;
}

async function load(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

// The photo with attention and box, and what the second look saw, cut out of it.
function draw(canvas, fine, seen, photo, heat) {
  const enlarged = Math.max(1, 640 / Math.max(photo.naturalWidth, photo.naturalHeight)); // lines stay thin on small photos
  const [width, height] = [photo.naturalWidth * enlarged, photo.naturalHeight * enlarged];
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
  if (heat && at("show-heat").checked) {
    // Dark where nothing was attended to: the heat's levels become what is let through.
    const small = make("canvas", { width: heat.naturalWidth, height: heat.naturalHeight });
    const brush = small.getContext("2d");
    brush.drawImage(heat, 0, 0);
    const pixels = brush.getImageData(0, 0, small.width, small.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data[i + 3] = 0.72 * (255 - pixels.data[i]);
      pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = 0;
    }
    brush.putImageData(pixels, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, width, height);
  }
  if (!seen.box) return;
  const scale = width / seen.width;
  const place = [seen.box.xmin, seen.box.ymin, seen.box.xmax - seen.box.xmin, seen.box.ymax - seen.box.ymin].map((x) => x * scale);
  if (place[2] < 1 || place[3] < 1) return;
  if (at("show-box").checked) {
    const line = Math.max(2, width / 160);
    for (const [colour, size] of [["rgb(0 0 0 / 0.55)", 2 * line], ["#ffd166", line]]) {
      pen.lineWidth = size;
      pen.strokeStyle = colour;
      pen.strokeRect(...place);
    }
  }
  fine.width = fine.height = 224;
  fine.getContext("2d").drawImage(photo, ...place.map((x) => x / enlarged), 0, 0, 224, 224);
}

function table(seen) {
  const views = Object.keys(seen.views);
  const answer = ["calibrated", "fused", "coarse"].find((view) => views.includes(view));
  const chances = Object.fromEntries(views.map((view) => [view, new Map(seen.views[view].map((row) => [row.class, row.probability]))]));
  const order = [answer, ...views.filter((view) => view !== answer)];
  const name = (view) => (views.length === 1 ? "probability" : VIEWS[view] ?? view);
  const head = make("tr", {}, make("th", { scope: "col" }, "class"), ...order.map((view) => make("th", { scope: "col" }, name(view))));
  const rows = seen.views[answer].map((row) => make("tr", {}, make("th", { scope: "row" }, row.class), ...order.map((view) => {
    const value = chances[view].get(row.class);
    const cell = make("td", {}, value === undefined ? "–" : percent(value));
    if (view === answer) {
      cell.className = "bar";
      cell.style.setProperty("--share", 100 * value + "%");
    }
    return cell;
  })));
  return make("table", {}, make("caption", {}, "The likeliest classes; – is not among a look's own likeliest"), make("thead", {}, head), make("tbody", {}, ...rows));
}

async function show(item, seen) {
  const photo = await load(seen.pictures.photo);
  const heat = seen.pictures.attention ? await load(seen.pictures.attention) : null;
  const canvas = make("canvas", { role: "img" });
  const fine = make("canvas", { role: "img", "aria-label": "what the second look saw" });
  const where = seen.box ? `, its box from ${Math.round(seen.box.xmin)} to ${Math.round(seen.box.xmax)} of ${seen.width} pixels across and from ${Math.round(seen.box.ymin)} to ${Math.round(seen.box.ymax)} of ${seen.height} down` : "";
  canvas.setAttribute("aria-label", `${seen.file}${where}`);
  const pictures = make("div", { class: "seen" }, make("figure", {}, canvas, make("figcaption", {}, `${seen.width} × ${seen.height} pixels`)));
  if (seen.box) pictures.append(make("figure", {}, fine, make("figcaption", {}, "second look")));
  const verdict = make("p", { class: "answer" }, make("strong", {}, seen.class), " " + percent(seen.probability));
  if (seen.unknown) verdict.append(make("span", { class: "unknown" }, " – perhaps none of these classes"));
  item.replaceChildren(make("h2", {}, seen.file), pictures, verdict, table(seen));
  item.redraw = () => draw(canvas, fine, seen, photo, heat);
  item.redraw();
}

async function look(file) {
  const name = file.name || "pasted image";
  const item = make("li", {}, make("h2", {}, name), make("p", { class: "muted" }, "looking …"));
  at("results").prepend(item);
  while (at("results").children.length > MOST_SHOWN) at("results").lastChild.remove();
  waiting += 1;
  try {
    const form = new FormData();
    form.append("image", file, name);
    const answer = await fetch("predict?pictures=1", { method: "POST", body: form });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    await show(item, said);
    tell(`${name}: ${said.class}, ${percent(said.probability)}`);
  } catch (error) {
    const reason = error instanceof TypeError ? "the server does not answer" : error.message;
    item.replaceChildren(make("h2", {}, name), make("p", { class: "error" }, reason));
    tell(`${name}: ${reason}`);
  }
  waiting -= 1;
}

async function take(files) {
  const images = [...files];
  if (images.length === 0) return;
  tell(images.length === 1 ? `looking at ${images[0].name || "a pasted image"} …` : `looking at ${images.length} images …`);
  // A few at a time: the server answers together what comes together.
  const left = [...images];
  const worker = async () => { while (left.length) await look(left.shift()); };
  await Promise.all(Array.from({ length: Math.min(8, images.length) }, worker));
  if (images.length > 1 && waiting === 0) tell(`${images.length} images seen`);
}

at("choose").addEventListener("change", async (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // the same file can be chosen again
  await take(files);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files); }
});
for (const name of ["show-box", "show-heat"]) {
  at(name).addEventListener("change", () => { for (const item of at("results").children) item.redraw?.(); });
}
at("clear").addEventListener("click", () => { at("results").replaceChildren(); tell("cleared"); at("choose").focus(); });
