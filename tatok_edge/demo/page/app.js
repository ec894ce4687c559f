"use strict";

/* The page of `tatok demo`: shows what the server sends, sends what the visitor sets. No library, nothing from outside. */

const SECONDS = 20; // length of the plots
const NUMBERS_MS = 160; // time between two updates of the numbers, so that they can be read
const PLOTS_MS = 60; // shortest time between two drawings of the plots
const SILENT_MS = 3000; // without a picture for so long, the status says so
const SEND_MS = 30; // shortest time between two messages of a slider that is being dragged
const HELD = 0, UPDATED = 1, MOVED = 2, TOKEN = 3; // values of the map; TOKEN + 1: two tokens were sent, and so on
const TOKEN_COLORS = ["255, 206, 48", "255, 150, 46", "240, 96, 62", "222, 60, 120"]; // of 1, 2, 3, 4 and more tokens
const MAP_SCALE = 2; // pixels of the map canvas per pixel of the picture
const WEBCAM_BUFFER = 1 << 17; // bytes that may wait on the socket before webcam pictures are left out

const NO_LIMIT = null;
const KEEP_STOPS = [0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, NO_LIMIT];
const TOKEN_STOPS = [0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, NO_LIMIT];
const KBPS_STOPS = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, NO_LIMIT];
const SIZES = [160, 240, 320, 480, 640, 960, 1280];

const SLIDERS = [
  { name: "max_loss_db", label: "Loss allowed", min: 0, max: 3, step: 0.05, text: v => `${v.toFixed(2)} dB`,
    hint: "against all tokens" },
  { name: "tau", label: "Score kept (τ)", min: 0.05, max: 1, step: 0.01, text: percent,
    hint: "of the total score" },
  { name: "keep", label: "Tokens per patch", stops: KEEP_STOPS, text: v => v === NO_LIMIT ? "no limit" : `≤ ${v}`,
    hint: "on average in one frame" },
  { name: "max_tokens", label: "Patch tokens", stops: TOKEN_STOPS, text: v => v === NO_LIMIT ? "no limit" : `≤ ${whole(v)}`,
    hint: "in one frame" },
  { name: "max_kbps", label: "Bandwidth", stops: KBPS_STOPS, text: v => v === NO_LIMIT ? "no limit" : `≤ ${whole(v)} kbit/s`,
    hint: "of every second; its rest sharpens still parts" },
];

const $ = id => document.getElementById(id);
const paint = { camera: $("camera").getContext("2d"), map: $("map").getContext("2d"), picture: $("picture").getContext("2d") };

let socket = null;
let retry = 500;
let page = null; // number of this page
let state = null;
let last = null; // header of the newest frame
let lastAt = 0; // when it came
let samples = []; // headers of the frames in the plots
let drawn = 0; // frames shown so far
let adaptiveMean = null;
let request = 0;
let sentAt = new Map();
let sliderMs = null;
let colors = {};

function percent(value) { return `${Math.round(100 * value)} %`; }
function whole(value) { return Math.round(value).toLocaleString("en"); }
function short(value, digits) { return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits); }
function clock(seconds) {
  const s = Math.max(0, seconds);
  return `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
}

/* --- the socket -------------------------------------------------------------------------------------- */

function connect() {
  const address = new URL("socket", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.search = "";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { retry = 500; };
  socket.onmessage = event => {
    if (typeof event.data === "string") {
      const message = JSON.parse(event.data);
      if (message.type === "state") showState(message);
      else if (message.type === "notice") notice(message.text);
    } else {
      receive(event.data);
    }
  };
  socket.onclose = event => {
    stopWebcam();
    setStatus(event.reason || "not connected; trying again", "bad");
    setTimeout(connect, retry);
    retry = Math.min(2 * retry, 5000);
  };
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function notice(text) {
  $("notice-text").textContent = text;
  $("notice").hidden = false;
}

function setStatus(text, kind) {
  const status = $("status");
  if (status.textContent === text && status.dataset.state === kind) return; // else it would be read out again and again
  status.textContent = text;
  status.dataset.state = kind;
  if (kind === "bad") $("rate").textContent = "";
}

/* --- frames ------------------------------------------------------------------------------------------- */

let queue = Promise.resolve();

function receive(buffer) {
  queue = queue.then(() => draw(buffer)).catch(error => notice(`a frame cannot be shown: ${error.message}`));
}

async function draw(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  let at = 4 + size;
  const parts = header.sizes.map(length => { const part = new Uint8Array(buffer, at, length); at += length; return part; });
  try {
    if (!document.hidden) await drawPictures(header, parts);
  } finally {
    send({ type: "seen", number: header.number });
  }
  if (header.applied !== null && sentAt.has(header.applied)) {
    sliderMs = performance.now() - sentAt.get(header.applied);
    for (const key of sentAt.keys()) if (key <= header.applied) sentAt.delete(key);
  }
  if (last && (last.mode !== header.mode && (last.mode === "recording" || header.mode === "recording"))) samples = [];
  last = header;
  lastAt = performance.now();
  drawn += 1;
  header.tokens = header.patch_tokens + header.global_tokens + header.vectors;
  samples.push(header);
  const newest = header.time;
  while (samples.length > 4000 || samples[0].time < newest - SECONDS - 1 || samples[0].time > newest) samples.shift();
}

async function drawPictures(header, parts) {
  const bitmaps = await Promise.all(parts.slice(0, 2).map(
    part => part.length ? createImageBitmap(new Blob([part], { type: "image/jpeg" })) : null));
  const [camera, picture] = bitmaps;
  $("veil").hidden = camera !== null;
  $("compare").classList.toggle("alone", camera === null);
  if (camera) show(paint.camera, camera);
  show(paint.picture, picture);
  const view = $("map-view").value;
  if (view === "sent") drawMap(header, camera || picture, parts[2]);
  else if (view === "depth") drawDepths(header, picture, parts[3]);
  else drawSequence(header, parts[4]);
  for (const bitmap of bitmaps) if (bitmap) bitmap.close();
}

function show(context, bitmap) {
  const canvas = context.canvas;
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
  }
  context.drawImage(bitmap, 0, 0);
}

/* The picture, dark where its patches are held. Patches with a token have a bright frame, warmer for more tokens. */
function drawMap(header, bitmap, map) {
  const context = paint.map, canvas = context.canvas, [rows, columns] = header.grid;
  const width = MAP_SCALE * header.width, height = MAP_SCALE * header.height, side = MAP_SCALE * 8;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  context.drawImage(bitmap, 0, 0, width, height);
  const deepest = TOKEN + TOKEN_COLORS.length - 1;
  const paths = Array.from({ length: deepest + 1 }, () => new Path2D());
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) {
      const value = Math.min(map[i], deepest), inset = value >= TOKEN ? 1.5 : 0, length = side - 2 * inset;
      paths[value].rect(column * side + inset, row * side + inset, length, length);
    }
  }
  context.fillStyle = "rgba(10, 14, 19, 0.74)";
  context.fill(paths[HELD]);
  context.fillStyle = "rgba(10, 14, 19, 0.45)";
  context.fill(paths[UPDATED]);
  context.fill(paths[MOVED]);
  context.fillStyle = "rgba(60, 190, 120, 0.34)";
  context.fill(paths[MOVED]);
  context.fillStyle = "rgba(75, 156, 255, 0.42)";
  context.fill(paths[UPDATED]);
  context.lineWidth = 2;
  TOKEN_COLORS.forEach((color, number) => {
    context.fillStyle = `rgba(${color}, ${0.1 + 0.12 * number})`;
    context.fill(paths[TOKEN + number]);
    context.strokeStyle = `rgb(${color})`;
    context.stroke(paths[TOKEN + number]);
  });
}

function colorOf(depth) { return TOKEN_COLORS[Math.min(depth, TOKEN_COLORS.length) - 1]; }

function sizeMap(header) {
  const canvas = paint.map.canvas, width = MAP_SCALE * header.width, height = MAP_SCALE * header.height;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  return [width, height];
}

/* The decoded picture below the number of tokens that are held of each patch. */
function drawDepths(header, bitmap, depths) {
  const [width, height] = sizeMap(header), context = paint.map, columns = header.grid[1], side = MAP_SCALE * 8;
  context.drawImage(bitmap, 0, 0, width, height);
  context.fillStyle = "rgba(10, 14, 19, 0.55)";
  context.fillRect(0, 0, width, height);
  for (let i = 0; i < depths.length; i++) {
    if (!depths[i]) continue;
    context.fillStyle = `rgba(${colorOf(depths[i])}, 0.5)`;
    context.fillRect(side * (i % columns) + 1, side * Math.floor(i / columns) + 1, side - 2, side - 2);
  }
}

/* The tokens of the frame in the order in which a model reads them: a box each, its fill from the id, its frame from the depth. */
function drawSequence(header, part) {
  const [width, height] = sizeMap(header), context = paint.map;
  const tokens = new Int32Array(part.buffer.slice(part.byteOffset, part.byteOffset + part.byteLength)), count = tokens.length / 3;
  context.fillStyle = "#0a0e13";
  context.fillRect(0, 0, width, height);
  const side = Math.max(4, Math.min(40, Math.floor(Math.sqrt(width * height / Math.max(count, 1)) * 0.96)));
  const across = Math.max(1, Math.floor(width / side));
  context.lineWidth = Math.max(1, side / 10);
  for (let i = 0; i < count; i++) {
    const [patch, depth, id] = tokens.subarray(3 * i, 3 * i + 3), x = side * (i % across), y = side * Math.floor(i / across);
    context.fillStyle = `hsl(${(id * 137.508) % 360}, 45%, ${28 + id % 30}%)`;
    context.strokeStyle = `rgb(${colorOf(depth)})`;
    context.fillRect(x + 1, y + 1, side - 2, side - 2);
    context.strokeRect(x + 1.5, y + 1.5, side - 3, side - 3);
  }
  const first = [];
  for (let i = 0; i < Math.min(count, 4); i++) first.push(`(${tokens[3 * i]}, ${tokens[3 * i + 1]}, ${tokens[3 * i + 2]})`);
  const text = !count ? "No patch token was sent for this frame: nothing changed." :
    `(patch, depth, id): ${first.join(" ")}${count > 4 ? " …" : ""} ${header.patch_tokens > count ? `the first ${count} of ${whole(header.patch_tokens)}` : `${whole(count)} patch tokens`}`;
  if (performance.now() - sequenceAt > NUMBERS_MS) {
    sequenceAt = performance.now();
    $("sequence-text").textContent = text;
  }
}

let sequenceAt = 0;

function showMapView() {
  const view = $("map-view").value;
  $("sequence-text").hidden = view !== "sequence";
  document.querySelector(".only-sent").hidden = view !== "sent";
}

/* Left of the edge the camera, right of it the reconstruction. */
function wipe() {
  const place = `${$("wipe").value}%`;
  $("picture").style.clipPath = `inset(0 0 0 ${place})`;
  $("edge").style.left = place;
}

/* --- numbers and plots ---------------------------------------------------------------------------------- */

function recent(seconds) {
  const newest = samples.length ? samples[samples.length - 1].time : 0;
  return samples.filter(sample => sample.time > newest - seconds);
}

function mean(list, name) {
  let sum = 0, count = 0;
  for (const sample of list) if (typeof sample[name] === "number") { sum += sample[name]; count++; }
  return count ? sum / count : null;
}

function showNumbers() {
  if (!last) return;
  const list = recent(1).filter(sample => sample.mode === last.mode);
  const tokens = mean(list, "tokens"), fixed = last.fixed_tokens;
  const playing = last.mode === "recording", vectors = mean(list, "vectors");
  if (last.mode !== "fixed") adaptiveMean = tokens;
  $("count-adaptive").textContent = adaptiveMean === null ? "–" : whole(adaptiveMean);
  $("count-fixed").textContent = whole(fixed);
  $("ratio-value").textContent = adaptiveMean === null ? "–" : `${(fixed / Math.max(adaptiveMean, 1)).toFixed(1)}×`;
  $("value-tokens").textContent = whole(tokens);
  $("more-tokens").textContent = `of ${whole(fixed)} at the fixed rate; ${whole(mean(list, "patch_tokens"))} patch + ${whole(mean(list, "global_tokens"))} global${vectors > 0.5 ? ` + ${whole(vectors)} motion` : ""}`;
  $("value-kbps").textContent = `${short(last.kbps, last.kbps < 100 ? 1 : 0)} kbit/s`;
  const bits = 24 * last.width * last.height * Math.max(last.fps, 1) / 1000;
  $("more-kbps").textContent = last.kbps > 0 ? `${whole(mean(list, "bits"))} bits per frame; uncompressed RGB takes ${whole(bits / last.kbps)}×` : "";
  const db = mean(list, "psnr");
  $("value-psnr").textContent = db === null ? "–" : `${short(db, 2)} dB`;
  $("more-psnr").textContent = playing ? "no camera to compare with" : "of the picture from tokens, against the camera";
  const packet = mean(list, "packet_ms"), shown = mean(list, "shown_ms");
  $("value-latency").textContent = shown === null ? "–" : `${short(shown, 0)} ms`;
  $("packet-key").textContent = `${short(packet, 0)} ms to the packet`;
  $("packet-key").hidden = packet === null;
  $("camera-note").textContent = `${last.width}×${last.height}`;
  $("picture-note").textContent = db === null ? "" : `${short(db, 1)} dB`;
  const parts = [];
  if (sliderMs !== null) parts.push(`slider to picture ${short(sliderMs, 0)} ms`);
  if (last.encode_ms !== null) parts.push(`encoding ${short(mean(list, "encode_ms"), 1)} ms`);
  parts.push(`${whole(mean(list, "updated"))} of ${whole(last.grid[0] * last.grid[1])} patches updated per frame`);
  const given = mean(list, "patches_with_tokens");
  if (given > 0.5) parts.push(`${short(mean(list, "patch_tokens") / given, 1)} tokens for each patch with tokens`);
  parts.push(`${short(mean(list, "held_depth"), 2)} tokens held per patch`);
  if (last.dropped) parts.push(`${whole(last.dropped)} camera frames passed over for newer ones`);
  if (last.skipped) parts.push(`${whole(last.skipped)} frames not sent, to keep the bandwidth; the picture was held`);
  $("figures").textContent = parts.join(" · ");
  $("figures").dataset.sliderMs = sliderMs === null ? "" : sliderMs.toFixed(1);
  if (socket.readyState !== WebSocket.OPEN || !state) return;
  const paused = playing && state.playback && !state.playback.playing;
  if (state.problem) setStatus(state.problem, "bad");
  else if (paused) setStatus("paused", "live");
  else if (performance.now() - lastAt > SILENT_MS) setStatus("waiting for the next picture", "bad");
  else setStatus(playing ? "playing" : "live", "live");
  if ($("status").dataset.state === "live") $("rate").textContent = paused ? "" : `${short(last.fps, 0)} frames/s`;
  if (playing) showPosition();
}

function nice(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  for (const factor of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) if (value <= factor * power * 1.0001) return factor * power;
  return 10 * power;
}

/* One rolling plot. `lines` are [name, color, filled]; `marks` are dashed horizontal lines [value, text]. */
function plot(id, { low, high, lines, marks = [], digits = 0 }) {
  const canvas = $(id), ratio = Math.min(devicePixelRatio || 1, 3);
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const left = 38, right = width - 4, top = 6, bottom = height - 16;
  const now = samples.length ? samples[samples.length - 1].time : 0;
  const x = time => right - (right - left) * (now - time) / SECONDS;
  const y = value => bottom - (bottom - top) * (Math.min(Math.max(value, low), high) - low) / (high - low);
  context.font = "11px system-ui, sans-serif";
  context.lineWidth = 1;
  context.textBaseline = "middle";
  for (const value of [low, (low + high) / 2, high]) {
    context.strokeStyle = colors.grid;
    context.beginPath();
    context.moveTo(left, Math.round(y(value)) + 0.5);
    context.lineTo(right, Math.round(y(value)) + 0.5);
    context.stroke();
    context.fillStyle = colors.dim;
    context.textAlign = "right";
    context.fillText(value >= 10000 ? `${Math.round(value / 1000)}k` : value.toFixed(value % 1 ? Math.max(digits, 1) : digits), left - 5, y(value));
  }
  context.textBaseline = "alphabetic";
  for (const [seconds, align, place] of [[SECONDS, "left", left], [SECONDS / 2, "center", (left + right) / 2], [0, "right", right]]) {
    context.textAlign = align;
    context.fillText(seconds ? `−${seconds} s` : "now", place, height - 2);
  }
  context.save();
  context.beginPath();
  context.rect(left, 0, right - left, height);
  context.clip();
  for (const [name, color, filled] of lines) {
    context.strokeStyle = context.fillStyle = color;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    let path = null, first = null, previous = null;
    const finish = () => {
      if (!path) return;
      context.stroke(path);
      if (filled) {
        const area = new Path2D(path);
        area.lineTo(previous, bottom);
        area.lineTo(first, bottom);
        area.closePath();
        context.globalAlpha = 0.14;
        context.fill(area);
        context.globalAlpha = 1;
      }
      path = null;
    };
    let lastTime = null;
    for (const sample of samples) {
      if (typeof sample[name] !== "number" || (lastTime !== null && sample.time - lastTime > 2)) finish();
      if (typeof sample[name] !== "number") continue;
      const px = x(sample.time), py = y(sample[name]);
      if (path) path.lineTo(px, py);
      else { path = new Path2D(); path.moveTo(px, py); first = px; }
      previous = px;
      lastTime = sample.time;
    }
    finish();
  }
  context.restore();
  for (const [value, text] of marks) {
    const py = Math.round(y(value)) + 0.5;
    context.strokeStyle = context.fillStyle = colors.dim;
    context.setLineDash([5, 4]);
    context.beginPath();
    context.moveTo(left, py);
    context.lineTo(right, py);
    context.stroke();
    context.setLineDash([]);
    context.textAlign = "left";
    const tw = context.measureText(text).width, ty = py < 20 ? py + 13 : py - 4;
    context.fillStyle = colors.card;
    context.globalAlpha = 0.8;
    context.fillRect(left + 3, ty - 10, tw + 6, 13);
    context.globalAlpha = 1;
    context.fillStyle = colors.dim;
    context.fillText(text, left + 6, ty);
  }
}

function range(names) {
  let low = Infinity, high = -Infinity;
  for (const sample of samples) for (const name of names) {
    if (typeof sample[name] === "number") { low = Math.min(low, sample[name]); high = Math.max(high, sample[name]); }
  }
  return low <= high ? [low, high] : null;
}

function drawPlots() {
  if (!last) return;
  const fixed = last.fixed_tokens;
  const most = range(["tokens"]);
  plot("plot-tokens", { low: 0, high: nice(Math.max(fixed, most[1])), lines: [["tokens", colors.token, true]], marks: [[fixed, `fixed rate: ${whole(fixed)}`]] });
  const rate = range(["kbps"]), limit = last.limit_kbps;
  const top = nice(Math.max(rate[1], limit && limit < 4 * rate[1] ? limit * 1.05 : 0, 10));
  plot("plot-kbps", { low: 0, high: top, lines: [["kbps", colors.accent, true]], marks: limit && limit <= top ? [[limit, `limit: ${whole(limit)} kbit/s`]] : [] });
  const db = range(["psnr"]) || [20, 40];
  const low = Math.floor(db[0] - 1), high = Math.max(Math.ceil(db[1] + 1), low + 6);
  plot("plot-psnr", { low, high: low + 2 * Math.ceil((high - low) / 2), lines: [["psnr", colors.good, false]] });
  const ms = range(["shown_ms", "packet_ms"]) || [0, 50];
  plot("plot-latency", { low: 0, high: nice(Math.max(ms[1], 20)), lines: [["shown_ms", colors.accent, true], ["packet_ms", colors.token, false]] });
}

let numbersAt = 0, plotsAt = 0, plotted = null;
function tick(now) {
  if (now - numbersAt > NUMBERS_MS) {
    numbersAt = now;
    showNumbers();
  }
  if (now - plotsAt > PLOTS_MS && plotted !== last) {
    plotsAt = now;
    plotted = last;
    drawPlots();
  }
  requestAnimationFrame(tick);
}

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["grid", "dim", "token", "accent", "good", "card"]) colors[name] = style.getPropertyValue(`--${name}`).trim();
}

/* --- settings -------------------------------------------------------------------------------------------- */

let pending = {};
let pendingSince = null; // when the visitor made the first of these changes
let sendTimer = null;
let flushedAt = 0;

function change(changes) {
  if (pendingSince === null) pendingSince = performance.now();
  Object.assign(pending, changes);
  if (sendTimer === null) sendTimer = setTimeout(flush, Math.max(0, flushedAt + SEND_MS - performance.now()));
}

function flush() {
  sendTimer = null;
  flushedAt = performance.now();
  request += 1;
  sentAt.set(request, pendingSince);
  pendingSince = null;
  if (sentAt.size > 100) sentAt.delete(sentAt.keys().next().value);
  send({ type: "settings", request, ...pending });
  pending = {};
}

function nearest(stops, value) {
  if (value === NO_LIMIT) return stops.length - 1;
  let best = 0;
  stops.forEach((stop, i) => {
    if (stop !== NO_LIMIT && Math.abs(Math.log((stop + 1) / (value + 1))) < Math.abs(Math.log((stops[best] + 1) / (value + 1)))) best = i;
  });
  return best;
}

function makeSliders() {
  for (const slider of SLIDERS) {
    const row = document.createElement("div");
    row.className = "slider";
    const label = document.createElement("label");
    const output = document.createElement("output");
    const input = document.createElement("input");
    const hint = document.createElement("small");
    input.type = "range";
    input.id = `slider-${slider.name}`;
    input.min = slider.stops ? 0 : slider.min;
    input.max = slider.stops ? slider.stops.length - 1 : slider.max;
    input.step = slider.stops ? 1 : slider.step;
    hint.id = `hint-${slider.name}`;
    hint.textContent = slider.hint;
    input.setAttribute("aria-describedby", hint.id);
    label.htmlFor = output.htmlFor = input.id;
    label.textContent = slider.label;
    output.id = `value-${slider.name}`;
    slider.value = () => slider.stops ? slider.stops[input.valueAsNumber] : input.valueAsNumber;
    slider.show = () => {
      output.textContent = slider.text(slider.value());
      input.setAttribute("aria-valuetext", output.textContent);
    };
    slider.set = value => {
      // What the visitor is moving is not moved by an answer that is older.
      if (performance.now() - (slider.touched || -1e9) < 700) return;
      input.value = slider.stops ? nearest(slider.stops, value) : value;
      slider.show();
    };
    input.addEventListener("input", () => {
      slider.touched = performance.now();
      slider.show();
      change({ [slider.name]: slider.value() });
    });
    row.append(label, hint, output, input);
    $("sliders").append(row);
  }
}

/* --- state of the server ----------------------------------------------------------------------------------- */

function option(value, text, parent) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = text;
  parent.append(element);
}

let sourcesShown = "";

function showState(message) {
  state = message;
  page = message.page;
  const { settings, source, given, playback, recording } = message;
  $("model").textContent = `${message.model} · ${message.backend}` + (message.pages > 1 ? ` · ${message.pages} pages` : "");
  if (message.problem) setStatus(message.problem, "bad");
  for (const slider of SLIDERS) slider.set(settings[slider.name]);
  for (const radio of document.getElementsByName("mode")) {
    radio.checked = radio.value === settings.mode;
    radio.disabled = playback !== null;
  }
  const sizes = SIZES.includes(settings.size) ? SIZES : [...SIZES, settings.size].sort((a, b) => a - b);
  const sources = JSON.stringify([given, message.recordings, sizes]);
  if (sources !== sourcesShown) {
    sourcesShown = sources;
    const list = $("source");
    list.replaceChildren();
    option("source", given.name, list);
    if (message.recordings.length) {
      const group = document.createElement("optgroup");
      group.label = "Recordings";
      for (const name of message.recordings) option(`recording:${name}`, name, group);
      list.append(group);
    }
    option("webcam", "webcam of a page", list);
    list.lastElementChild.hidden = true;
    $("size").replaceChildren();
    for (const size of sizes) option(size, `${size} pixels`, $("size"));
  }
  $("source").value = source.kind === "recording" ? `recording:${source.name}` : source.kind;
  $("size").value = settings.size;
  $("size").disabled = playback !== null;
  $("sliders").disabled = settings.mode === "fixed" || playback !== null;
  $("sliders-note").hidden = !$("sliders").disabled;
  $("sliders-note").textContent = playback !== null
    ? "The tokens of a recording are what they are."
    : "At the fixed rate every token of every frame is sent; choose Adaptive for a budget.";
  const on = recording.name !== null;
  $("record").setAttribute("aria-pressed", on);
  $("record").disabled = !recording.allowed || playback !== null;
  $("record").title = recording.allowed ? "" : "Start tatok demo with --record-to FOLDER to record";
  $("record-text").textContent = on ? "Stop recording" : "Record";
  $("file").disabled = !recording.allowed;
  $("open").classList.toggle("off", !recording.allowed);
  $("playback").hidden = playback === null;
  $("download").hidden = source.kind !== "recording";
  if (source.kind === "recording") $("download").href = `recordings/${encodeURIComponent(source.name)}`;
  if (playback !== null) {
    $("play").textContent = playback.playing ? "Pause" : "Play";
    $("seek").max = playback.frames - 1;
    drawMarks();
  }
  const mine = source.kind === "webcam" && source.owner === page;
  if (mine) webcam.confirmed = true;
  else if (webcam.confirmed) stopWebcam();
  $("webcam").setAttribute("aria-pressed", webcam.stream !== null);
  $("webcam").textContent = webcam.stream !== null ? "Stop my webcam" : "Use my webcam";
}

/* --- recordings ------------------------------------------------------------------------------------------------ */

/* Takes a file that was chosen or dropped, and plays it. */
async function openFile(file) {
  if (!file) return;
  if (!state || !state.recording.allowed) {
    notice("Start tatok demo with --record-to FOLDER to drop recordings in.");
    return;
  }
  try {
    const reply = await fetch("recordings", { method: "POST", body: file });
    if (!reply.ok) throw new Error((await reply.text()).trim());
    send({ type: "source", name: "recording", recording: (await reply.json()).name });
  } catch (error) {
    notice(`${file.name} cannot be opened: ${error.message}`);
  }
}

let seeking = 0;
let seekTimer = null;

function seekTo(frame) {
  seeking = performance.now();
  $("seek").value = frame;
  if (seekTimer === null) {
    seekTimer = setTimeout(() => {
      seekTimer = null;
      send({ type: "seek", frame: $("seek").valueAsNumber });
    }, SEND_MS);
  }
}

function showPosition() {
  const playback = state && state.playback;
  if (!playback || last.mode !== "recording") return;
  if (performance.now() - seeking > 600) $("seek").value = last.frame;
  $("position").textContent = `frame ${whole(last.frame + 1)} of ${whole(playback.frames)}, ${clock(last.seconds)} of ${clock(playback.seconds)}`;
  $("position").dataset.frame = last.frame;
}

/* A tick below the seek bar for every keyframe. */
function drawMarks() {
  const canvas = $("marks"), { frames, keyframes } = state.playback;
  canvas.width = Math.max(canvas.clientWidth, 1);
  const context = canvas.getContext("2d");
  context.fillStyle = colors.dim;
  const knob = 8; // half the width of the slider's knob, which the track leaves free at its ends
  for (const frame of keyframes) {
    context.fillRect(knob + (canvas.width - 2 * knob) * frame / Math.max(frames - 1, 1) - 0.5, 0, 1, 5);
  }
}

/* --- webcam ------------------------------------------------------------------------------------------------------ */

const webcam = { stream: null, video: null, confirmed: false, canvas: document.createElement("canvas"), busy: false };

async function startWebcam() {
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    notice("This browser gives its webcam only to pages on localhost or https; open the demo through localhost, for example with ssh -L.");
    return;
  }
  try {
    webcam.stream = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } },
    });
  } catch (error) {
    notice(`The webcam cannot be used: ${error.message}`);
    return;
  }
  webcam.confirmed = false;
  webcam.video = document.createElement("video");
  webcam.video.muted = webcam.video.playsInline = true;
  webcam.video.srcObject = webcam.stream;
  await webcam.video.play();
  send({ type: "source", name: "webcam" });
  nextPicture();
}

function nextPicture() {
  const video = webcam.video;
  if (!webcam.stream) return;
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(sendPicture);
  else setTimeout(sendPicture, 33);
}

function sendPicture() {
  const { video, canvas } = webcam;
  if (!webcam.stream) return;
  nextPicture();
  if (webcam.busy || !webcam.confirmed || !video.videoWidth || socket.bufferedAmount > WEBCAM_BUFFER) return;
  const scale = Math.min(1, state.settings.size / Math.max(video.videoWidth, video.videoHeight));
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  webcam.busy = true;
  canvas.toBlob(async blob => {
    const data = blob && await blob.arrayBuffer();
    webcam.busy = false;
    if (data && webcam.stream && socket.readyState === WebSocket.OPEN) socket.send(data);
  }, "image/jpeg", 0.92);
}

function stopWebcam() {
  if (webcam.stream) for (const track of webcam.stream.getTracks()) track.stop();
  webcam.stream = null;
  webcam.confirmed = false;
  $("webcam").setAttribute("aria-pressed", "false");
  $("webcam").textContent = "Use my webcam";
}

/* --- start ----------------------------------------------------------------------------------------------------------- */

// The access token has done its work: the cookie has it now, and it need not stay in the address bar.
if (location.search) history.replaceState(null, "", location.pathname);

makeSliders();
showMapView(); // a browser may remember the choice
wipe();
readColors();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); plotted = null; });
addEventListener("resize", () => {
  plotted = null;
  if (state && state.playback) drawMarks();
});
for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => change({ mode: radio.value }));
$("size").addEventListener("change", () => change({ size: Number($("size").value) }));
$("source").addEventListener("change", () => {
  const [name, recording] = $("source").value.split(/:(.*)/s);
  send(name === "recording" ? { type: "source", name, recording } : { type: "source", name });
});
$("webcam").addEventListener("click", () => {
  if (webcam.stream) {
    stopWebcam();
    send({ type: "source", name: "source" });
  } else {
    startWebcam();
  }
});
$("record").addEventListener("click", () => send({ type: "record", on: $("record").getAttribute("aria-pressed") !== "true" }));
$("play").addEventListener("click", () => send({ type: "play", on: !state.playback.playing }));
$("back").addEventListener("click", () => { send({ type: "play", on: false }); seekTo(Math.max($("seek").valueAsNumber - 1, 0)); });
$("forward").addEventListener("click", () => { send({ type: "play", on: false }); seekTo($("seek").valueAsNumber + 1); });
$("seek").addEventListener("input", () => seekTo($("seek").valueAsNumber));
$("file").addEventListener("change", () => { openFile($("file").files[0]); $("file").value = ""; });
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => { event.preventDefault(); openFile(event.dataTransfer.files[0]); });
$("wipe").addEventListener("input", wipe);
$("map-view").addEventListener("change", showMapView);
$("notice-close").addEventListener("click", () => { $("notice").hidden = true; });
$("defaults").addEventListener("click", () => {
  const { tau, keep, max_tokens, max_loss_db, max_kbps } = state.defaults;
  for (const slider of SLIDERS) slider.touched = undefined;
  change({ tau, keep, max_tokens, max_loss_db, max_kbps });
});
connect();
requestAnimationFrame(tick);
