/* Asks the server for samples and reconstructions, and shows them. */
"use strict";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["guidance", "temperature", "top_k", "top_p", "min_p"];
const SMALL = 128; // pixels of a side below which an image is shown as squares
const PARALLEL = 4; // requests at a time: each image appears when it is ready
const RETRIES = 20;

let model = null;
let running = null; // AbortController of the samples that are being made

// -- the model ------------------------------------------------------------------------------

async function start() {
  try {
    model = (await (await answered(await fetch("v1/models"))).json()).data[0];
  } catch (error) {
    $("name").textContent = "The server does not answer";
    $("about").textContent = error.message;
    return;
  }
  document.title = `${model.id} · gear-dist`;
  $("name").textContent = model.id;
  const kind = !model.generates ? "Tokenizer alone" : model.takes_prompts ? "Images of prompts" : `${model.classes.length} classes`;
  $("about").textContent = `${kind}, ${model.image_size} × ${model.image_size} pixels`;
  if (model.generates) showForm();
  readLink();
}

function showForm() {
  $("generation").hidden = false;
  $("class-field").hidden = model.takes_prompts;
  $("prompt-field").hidden = !model.takes_prompts;
  for (const name of model.classes) $("classes").append(new Option(name, name));
  if (model.classes.length) $("class").value = model.classes[0];
  for (const name of SETTINGS) $(name).value = model.sampling[name];
  $("guidance").max = Math.max(10, model.sampling.guidance);
  $("guidance").value = model.sampling.guidance;
  $("guidance-field").hidden = !model.guidance_possible;
  showGuidance();
}

function showGuidance() {
  const value = Number($("guidance").value);
  $("guidance-shown").textContent = value === 1 ? "off" : String(value);
}

// -- samples --------------------------------------------------------------------------------

function condition() {
  const name = $("class").value;
  if (model.takes_prompts) return $("prompt").value;
  return model.classes.includes(name) ? name : name.trim();
}

function readForm() {
  const body = { prompt: condition(), n: 1 };
  for (const name of SETTINGS) {
    if (name === "guidance" && !model.guidance_possible) continue;
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  return body;
}

async function generate(event) {
  event.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  clearErrors();
  const seedText = $("seed").value.trim();
  if (!/^[0-9]{1,20}$/.test(seedText)) return fail("seed", "The seed is a whole number from 0");
  const count = Math.min(64, Math.max(1, Math.floor(Number($("count").value)) || 1));
  const first = BigInt(seedText);
  if (first + BigInt(count) > 1n << 64n) return fail("seed", "Seeds have at most 64 bits");
  const form = readForm();
  const tiles = Array.from({ length: count }, () => newTile());
  $("samples").replaceChildren(...tiles);
  busy(true);
  writeLink();
  let next = 0;
  let made = 0;
  const started = performance.now();
  const progress = () => {
    const left = (performance.now() - started) / 1000 / made * (count - made);
    const eta = made && made < count ? `, about ${Math.ceil(left)} s left` : "";
    say(`${made} of ${count} images${eta}`);
  };
  const work = async () => {
    while (next < count && !mine.signal.aborted) {
      const index = next++;
      const body = { ...form, seed: String(first + BigInt(index)) };
      showSample(tiles[index], (await ask(body, mine.signal)).data[0]);
      made++;
      progress();
    }
  };
  progress();
  try {
    await Promise.all(Array.from({ length: Math.min(PARALLEL, count) }, work));
  } catch (error) {
    if (running !== mine) return; // a later click took over
    for (const tile of tiles) if (tile.classList.contains("waiting")) tile.remove();
    if (mine.signal.aborted) say(`stopped after ${made} of ${count} images`);
    else fail(error.field, error.message);
    mine.abort();
  }
  if (running === mine) busy(false);
}

async function ask(body, signal) {
  for (let attempt = 0; ; attempt++) {
    const response = await fetch("v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    if (response.status !== 429 || attempt === RETRIES) return (await answered(response)).json();
    say("the server is busy: waiting …");
    await pause(Number(response.headers.get("Retry-After") || 1) * 1000, signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  });
}

async function answered(response) {
  if (response.ok) return response;
  let problem = { message: `the server answered ${response.status}` };
  try { problem = (await response.json()).error || problem; } catch { /* not ours: keep the status */ }
  const error = new Error(problem.message);
  error.field = problem.param;
  throw error;
}

function newTile() {
  const tile = $("tile").content.firstElementChild.cloneNode(true);
  tile.classList.add("waiting");
  tile.querySelector(".tools").hidden = true;
  return tile;
}

function setPicture(tile, base64, alt, side) {
  const image = new Image();
  image.alt = alt;
  image.src = `data:image/png;base64,${base64}`;
  image.classList.toggle("small", side < SMALL);
  tile.querySelector(".picture").replaceChildren(image);
  tile.classList.remove("waiting");
  return image;
}

function showSample(tile, sample) {
  const title = sample.prompt ?? sample.class_name ?? `class ${sample.class}`;
  const seed = /--seed ([0-9]+)/.exec(sample.command)[1]; // the number itself has lost digits here
  const image = setPicture(tile, sample.b64_json, `sample: ${title}, seed ${seed}`, model.image_size);
  tile.querySelector("b").textContent = title;
  tile.querySelector("small").textContent = `seed ${seed}`;
  tile.querySelector(".tools").hidden = false;
  const save = tile.querySelector(".save");
  save.href = image.src;
  save.download = `${model.id}-${seed}.png`;
  const copy = tile.querySelector(".copy");
  copy.dataset.command = sample.command;
  copy.addEventListener("click", () => copyText(copy, sample.command));
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https, browsers give the clipboard only to a selection.
    const area = document.createElement("textarea");
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy command"), 1500);
}

function busy(on) {
  $("stop").hidden = !on;
  $("generate").textContent = on ? "Generate anew" : "Generate";
}

function say(text) {
  $("status").textContent = text;
  $("status").classList.remove("error");
}

function clearErrors() {
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

function fail(name, message) {
  const field = $(name === "prompt" ? (model.takes_prompts ? "prompt" : "class") : name);
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.closest("details")?.setAttribute("open", "");
    field.focus();
  }
  $("status").textContent = message;
  $("status").classList.add("error");
  busy(false);
}

// -- the address: a link shows the same samples ----------------------------------------------

const LINKED = ["count", "seed", ...SETTINGS];

function writeLink() {
  const link = new URLSearchParams({ [model.takes_prompts ? "prompt" : "class"]: condition() });
  for (const name of LINKED) link.set(name, $(name).value);
  history.replaceState(null, "", `#${link}`);
}

function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const name of ["class", "prompt", ...LINKED]) {
    const value = link.get(name);
    const given = value !== null && (!SETTINGS.includes(name) || Number.isFinite(Number(value)));
    if (given) $(name).value = value;
  }
  if (model.generates) showGuidance();
}

// -- reconstruction -------------------------------------------------------------------------

async function reconstruct(file) {
  if (!file) return;
  const status = $("picture-status");
  status.classList.remove("error");
  status.textContent = "reconstructing …";
  $("reconstruction").replaceChildren();
  try {
    if (file.size > model.max_body_bytes) {
      throw new Error(`the file has ${file.size} bytes, and the server takes ${model.max_body_bytes}`);
    }
    const type = file.type.startsWith("image/") ? file.type : "image/unknown";
    const response = await fetch("v1/reconstruct", { method: "POST", headers: { "Content-Type": type }, body: file });
    showReconstruction((await (await answered(response)).json()).data[0]);
    status.textContent = "";
  } catch (error) {
    status.textContent = error.message;
    status.classList.add("error");
  }
}

function showReconstruction(found) {
  const side = found.tokens.length;
  const shown = [
    [found.original_b64_json, "Picture", "resized and cropped", model.image_size],
    [found.b64_json, "Reconstruction", "", model.image_size],
    [found.token_map_b64_json, "Tokens", `${side} × ${side}, alike codes have like colours`, 0],
  ].map(([base64, title, note, pixels]) => {
    const tile = newTile();
    const image = setPicture(tile, base64, title.toLowerCase(), pixels);
    tile.querySelector("b").textContent = title;
    tile.querySelector("small").textContent = note;
    return [tile, image, note];
  });
  const [tile, image, note] = shown[2];
  image.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    const place = (at, low, size) => Math.min(side - 1, Math.max(0, Math.floor((at - low) / size * side)));
    const row = place(event.clientY, box.top, box.height);
    const column = place(event.clientX, box.left, box.width);
    tile.querySelector("small").textContent = `row ${row}, column ${column}: code ${found.tokens[row][column]}`;
  });
  image.addEventListener("pointerleave", () => (tile.querySelector("small").textContent = note));
  $("reconstruction").replaceChildren(...shown.map(([each]) => each));
}

// -- events ---------------------------------------------------------------------------------

$("form").addEventListener("submit", generate);
$("stop").addEventListener("click", () => running?.abort());
$("guidance").addEventListener("input", () => {
  // By hand in tenths; a link may hold anything between.
  $("guidance").value = Math.round(Number($("guidance").value) * 10) / 10;
  showGuidance();
});
$("class").addEventListener("focus", (event) => event.target.select());
$("new-seed").addEventListener("click", () => {
  $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
});
$("picture").addEventListener("change", (event) => {
  reconstruct(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  reconstruct(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) reconstruct(event.clipboardData.files[0]);
});
start();
