"use strict";
// The 3D view. Frames: that of the mesh (x right, y up, z to the viewer, metres) and the
// view's, which is the mesh's after pose and turn. Matrices are 3 x 3, row by row.

const IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const RADIANS = Math.PI / 180;

function product(a, b) {
  return a.map((_, i) => {
    const row = 3 * Math.floor(i / 3);
    return a[row] * b[i % 3] + a[row + 1] * b[3 + (i % 3)] + a[row + 2] * b[6 + (i % 3)];
  });
}

function transposed(m) {
  return [m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]];
}

function applied(m, v) {
  return [0, 3, 6].map((r) => m[r] * v[0] + m[r + 1] * v[1] + m[r + 2] * v[2]);
}

// First about the vertical axis (positive: the near side moves to the right), then about
// the horizontal one (positive: it moves up). Degrees.
function turnOf(yaw, pitch) {
  const [cy, sy] = [Math.cos(yaw * RADIANS), Math.sin(yaw * RADIANS)];
  const [cx, sx] = [Math.cos(pitch * RADIANS), Math.sin(pitch * RADIANS)];
  return product([1, 0, 0, 0, cx, sx, 0, -sx, cx], [cy, 0, sy, 0, 1, 0, -sy, 0, cy]);
}

function directionOf(azimuth, elevation) {
  const level = Math.cos(elevation * RADIANS);
  return [
    Math.sin(azimuth * RADIANS) * level,
    Math.sin(elevation * RADIANS),
    Math.cos(azimuth * RADIANS) * level,
  ];
}

function anglesOf([x, y, z]) {
  return [
    Math.atan2(x, z) / RADIANS,
    Math.asin(clamp(y / Math.hypot(x, y, z), -1, 1)) / RADIANS,
  ];
}

// The direction whose light touches a ball at (x, y) of its picture, a disc of radius 1.
function onBall(x, y) {
  const far = Math.hypot(x, y);
  if (far >= 1) return [x / far, y / far, 0];
  return [x, y, Math.sqrt(1 - far * far)];
}

function clamp(value, least, most) {
  return Math.min(Math.max(value, least), most);
}

function wrapped(degrees) {
  return ((((degrees + 180) % 360) + 360) % 360) - 180;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

// The one mesh of a glTF binary: its arrays, and the bytes of its texture.
function readGlb(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== 0x46546c67) throw new Error("no glTF binary");
  const length = view.getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + length)));
  const start = 20 + length + 8;
  const part = (index) => {
    const found = gltf.bufferViews[index];
    const first = start + (found.byteOffset || 0);
    return bytes.slice(first, first + found.byteLength);
  };
  const kinds = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array,
    5126: Float32Array };
  const widths = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
  const array = (index) => {
    const found = gltf.accessors[index];
    const first = found.byteOffset || 0;
    const count = found.count * widths[found.type];
    return new kinds[found.componentType](part(found.bufferView).buffer, first, count);
  };
  const mesh = gltf.meshes[0].primitives[0];
  const picture = gltf.images && gltf.images[0];
  return {
    positions: array(mesh.attributes.POSITION),
    normals: array(mesh.attributes.NORMAL),
    places: array(mesh.attributes.TEXCOORD_0),
    faces: Uint32Array.from(array(mesh.indices)),
    texture: picture ? part(picture.bufferView) : null,
  };
}

const VERTEX = `#version 300 es
uniform mat3 pose, turn;
uniform vec3 shift;
uniform float half_width, distance_, zoom, near, far, low, high;
in vec3 position, normal;
in vec2 place;
out vec3 facing;
out vec2 uv;
out float height;
void main() {
  vec3 p = turn * (pose * position) + shift;
  float w = distance_ - p.z;
  float z = ((far + near) * w - 2.0 * far * near) / (far - near);
  gl_Position = vec4(p.xy * zoom / half_width, z, w);
  facing = normal;
  uv = place;
  height = (position.z - low) / max(high - low, 1e-6);
}`;

// The shading of the model, (k_s + k_d max(0, <l, n>)) a, as its pictures have it.
const FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D picture;
uniform vec3 light;
uniform float ambient, diffuse;
uniform int kind;
in vec3 facing;
in vec2 uv;
in float height;
out vec4 colour;
void main() {
  vec3 n = normalize(facing);
  float lit = ambient + diffuse * max(0.0, dot(n, light));
  vec3 c = texture(picture, uv).rgb;
  if (kind == 0) c *= lit;
  if (kind == 2) c = vec3(0.8 * lit);
  if (kind == 3) c = 0.5 + 0.5 * n;
  if (kind == 4) c = vec3(height);
  colour = vec4(gl_FrontFacing ? c : 0.3 * c, 1.0);
}`;
const KINDS = { shaded: 0, flat: 1, shape: 2, normals: 3, depth: 4 };

// Draws one mesh; knows no page.
class Painter {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: true });
    if (!gl) throw new Error("This browser shows no 3D (WebGL2): turn on hardware "
      + "acceleration, or take another browser. The 3D model can be saved all the same.");
    this.canvas = canvas;
    this.gl = gl;
    const program = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      throw new Error(`This browser's 3D does not work: ${gl.getProgramInfoLog(program)}`);
    }
    gl.useProgram(program);
    this.program = program;
    this.textures = new Map();
    this.buffers = [];
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0.11, 0.11, 0.11, 1);
  }

  load(mesh, pictures) {
    const gl = this.gl;
    this.buffers.forEach((buffer) => gl.deleteBuffer(buffer));
    this.textures.forEach((texture) => gl.deleteTexture(texture));
    this.buffers = [];
    this.textures = new Map();
    const fill = (target, data) => {
      const buffer = gl.createBuffer();
      this.buffers.push(buffer);
      gl.bindBuffer(target, buffer);
      gl.bufferData(target, data, gl.STATIC_DRAW);
    };
    for (const [name, data, width] of [
      ["position", mesh.positions, 3], ["normal", mesh.normals, 3], ["place", mesh.places, 2],
    ]) {
      fill(gl.ARRAY_BUFFER, data);
      const where = gl.getAttribLocation(this.program, name);
      gl.enableVertexAttribArray(where);
      gl.vertexAttribPointer(where, width, gl.FLOAT, false, 0, 0);
    }
    fill(gl.ELEMENT_ARRAY_BUFFER, mesh.faces);
    this.count = mesh.faces.length;
    for (const [name, picture] of pictures) {
      const texture = gl.createTexture();
      this.textures.set(name, texture);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
      for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) {
        gl.texParameteri(gl.TEXTURE_2D, axis, gl.CLAMP_TO_EDGE);
      }
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    }
  }

  draw(numbers, matrices, kind, picture) {
    const gl = this.gl;
    const at = (name) => gl.getUniformLocation(this.program, name);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    for (const [name, value] of Object.entries(numbers)) {
      if (Array.isArray(value)) gl.uniform3fv(at(name), value);
      else gl.uniform1f(at(name), value);
    }
    for (const [name, value] of Object.entries(matrices)) {
      gl.uniformMatrix3fv(at(name), true, value);
    }
    gl.uniform1i(at("kind"), KINDS[kind]);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.get(picture));
    gl.drawElements(gl.TRIANGLES, this.count, gl.UNSIGNED_INT, 0);
  }
}

// The page around the view.
class Viewer {
  constructor() {
    this.at = Object.fromEntries(
      [...document.querySelectorAll("#viewer, #viewer [id], #title")].map((e) => [e.id, e]));
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.painter = null;
    this.queued = false;
    this.swinging = 0;
    this.listen();
  }

  async show(content) {
    this.stop();
    this.loaded = null;
    this.content = content;
    this.glb = bytesOf(content.glb);
    const mesh = readGlb(this.glb);
    const at = this.at;
    const photo = content.photo ? `data:image/png;base64,${content.photo}` : "";
    at.title.textContent = document.title = content.title;
    at.beside.hidden = !photo;
    if (photo) at.photo.src = at.overlay.src = photo;
    at.pose.hidden = !content.pose;
    at.compare.hidden = !(content.pose && photo);
    at.wipe.value = 0;
    this.map = "shaded";
    this.measure(mesh);
    this.face();
    this.relight();
    this.choices();
    const decoded = (bytes) => createImageBitmap(new Blob([bytes], { type: "image/png" }),
      { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    const pictures = [["texture", await decoded(mesh.texture)]];
    for (const map of content.maps) {
      pictures.push([map.name, await decoded(bytesOf(map.png))]);
    }
    this.loaded = [mesh, pictures];
    at.viewer.hidden = false;
    this.begin();
    if (this.painter && !this.calm.matches) this.start(1);
  }

  begin() {
    try {
      this.painter = this.painter || new Painter(this.at.canvas);
      this.painter.load(...this.loaded);
      this.at.trouble.hidden = true;
    } catch (error) {
      this.painter = null;
      this.at.trouble.textContent = error.message;
      this.at.trouble.hidden = false;
    }
    this.fit();
  }

  // What of the mesh the camera must hold, and between which depths it lies.
  measure(mesh) {
    let [wide, high, low, top] = [0, 0, Infinity, -Infinity];
    const p = mesh.positions;
    for (let i = 0; i < p.length; i += 3) {
      wide = Math.max(wide, Math.hypot(p[i], p[i + 2]));
      high = Math.max(high, Math.abs(p[i + 1]));
      low = Math.min(low, p[i + 2]);
      top = Math.max(top, p[i + 2]);
    }
    const { half_width, distance } = this.content.camera;
    const moved = this.content.pose ? Math.hypot(...this.content.pose.translation) : 0;
    const radius = 1.05 * (Math.hypot(wide, high) + moved);
    this.limits = {
      near: Math.max(distance - radius, 0.01 * distance), far: distance + radius,
      low, high: top,
    };
    this.fitting = Math.min(1, (0.95 * half_width * distance) / Math.max(wide, high));
  }

  maps() {
    const { texture, maps } = this.content;
    return [
      ["shaded", "shaded", "texture", "Shaded",
        `${texture}, shaded by the light. Drag the lamp to move it.`],
      ["texture", "flat", "texture", texture, `${texture}, without light.`],
      ["shape", "shape", "texture", "Shape", "The shape alone, under the light."],
      ["normals", "normals", "texture", "Normals",
        "Where the surface faces: red to the right, green up, blue to the viewer."],
      ["depth", "depth", "texture", "Depth", "Near is bright."],
      ...maps.map((m) => [m.name, "flat", m.name, m.label, m.legend]),
    ];
  }

  choices() {
    this.at.maps.replaceChildren(...this.maps().map(([name, , , label]) => {
      const line = document.createElement("label");
      const radio = Object.assign(document.createElement("input"),
        { type: "radio", name: "map", value: name, checked: name === this.map });
      radio.addEventListener("change", () => { this.map = name; this.told(); });
      line.append(radio, label);
      return line;
    }));
    this.told();
  }

  told() {
    this.at.legend.textContent = this.maps().find(([name]) => name === this.map)[4];
    this.refresh();
  }

  face() {
    Object.assign(this, { yaw: 0, pitch: 0, zoom: this.fitting, posed: false });
    this.wipe(0);
  }

  asInPhoto() {
    Object.assign(this, { yaw: 0, pitch: 0, zoom: 1, posed: true });
    this.refresh();
  }

  relight() {
    const { ambient, diffuse, direction } = this.content.light;
    Object.assign(this, { ambient, diffuse, light: direction });
    this.refresh();
  }

  wipe(percent) {
    this.at.wipe.value = percent;
    this.at.overlay.hidden = percent === 0;
    this.at.overlay.style.setProperty("--wipe", `${percent}%`);
    this.refresh();
  }

  // The photo lies over the view only while that shows what the photo shows.
  turned(yaw, pitch) {
    if (this.at.wipe.value > 0) this.wipe(0);
    this.yaw = wrapped(yaw);
    this.pitch = clamp(pitch, -85, 85);
    this.refresh();
  }

  zoomed(factor) {
    if (this.at.wipe.value > 0) this.wipe(0);
    this.zoom = clamp(this.zoom * factor, 0.5, 4);
    this.refresh();
  }

  turn() {
    return turnOf(this.yaw, this.pitch);
  }

  whole() {
    return product(this.turn(), this.posed ? this.content.pose.rotation : IDENTITY);
  }

  lampAt() {
    return applied(this.whole(), this.light);
  }

  lampTo(x, y) {
    this.light = applied(transposed(this.whole()), onBall(x, y));
    this.refresh();
  }

  refresh() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.draw(); });
  }

  draw() {
    if (!this.loaded) return;
    const at = this.at;
    const [azimuth, elevation] = anglesOf(this.light);
    for (const [name, value, unit] of [
      ["yaw", this.yaw, " degrees"], ["pitch", this.pitch, " degrees"],
      ["zoom", 100 * this.zoom, " percent"],
      ["azimuth", azimuth, " degrees"], ["elevation", elevation, " degrees"],
      ["ambient", this.ambient, ""], ["diffuse", this.diffuse, ""],
    ]) {
      at[name].value = value;
      at[name].setAttribute("aria-valuetext", (unit ? Math.round(value) : value.toFixed(2)) + unit);
    }
    const [x, y, z] = this.lampAt();
    at.lamp.style.left = `${50 + 42 * x}%`;
    at.lamp.style.top = `${50 - 42 * y}%`;
    at.lamp.classList.toggle("behind", z < 0);
    const [, kind, picture] = this.maps().find(([name]) => name === this.map);
    at.lamp.hidden = !["shaded", "shape"].includes(kind) || !this.painter;
    if (!this.painter) return;
    const { half_width, distance } = this.content.camera;
    this.painter.draw({
      ...this.limits, half_width, distance_: distance, zoom: this.zoom, light: this.light,
      ambient: this.ambient, diffuse: this.diffuse,
      shift: this.posed ? this.content.pose.translation : [0, 0, 0],
    }, {
      turn: this.turn(), pose: this.posed ? this.content.pose.rotation : IDENTITY,
    }, kind, picture);
  }

  fit() {
    const side = Math.round(this.at.screen.clientWidth * Math.min(devicePixelRatio, 2));
    if (side > 0) this.at.canvas.width = this.at.canvas.height = side;
    this.refresh();
  }

  // To both sides and back; `times`, or until stopped.
  start(times) {
    const { yaw, pitch } = this;
    const begun = performance.now();
    this.at.swing.setAttribute("aria-pressed", "true");
    const step = (now) => {
      const turns = Math.max(now - begun, 0) / 4000;
      if (turns >= times) return this.stop(() => this.turned(yaw, pitch));
      this.turned(yaw + 35 * Math.sin(2 * Math.PI * turns), pitch);
      this.swinging = requestAnimationFrame(step);
    };
    this.swinging = requestAnimationFrame(step);
  }

  stop(after) {
    if (!this.swinging) return;
    cancelAnimationFrame(this.swinging);
    this.swinging = 0;
    this.at.swing.setAttribute("aria-pressed", "false");
    if (after) after();
  }

  save(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  fileName(ending) {
    return `${this.content.title.replace(/[^\p{L}\p{N} _.-]/gu, "_")}${ending}`;
  }

  saveGlb() {
    this.save(this.fileName(".glb"), new Blob([this.glb], { type: "model/gltf-binary" }));
  }

  savePng() {
    if (!this.painter) return;
    const canvas = this.at.canvas;
    canvas.width = canvas.height = 1024;
    this.draw();
    canvas.toBlob((blob) => this.save(this.fileName(".png"), blob), "image/png");
    this.fit();
  }

  listen() {
    const at = this.at;
    const on = (element, names, act, options) => names.split(" ").forEach(
      (name) => element.addEventListener(name, act, options));
    on(document, "pointerdown keydown wheel", (event) => {
      if (event.target !== at.swing) this.stop();
    }, { capture: true, passive: true });
    for (const [name, act] of [
      ["yaw", (v) => this.turned(v, this.pitch)],
      ["pitch", (v) => this.turned(this.yaw, v)],
      ["zoom", (v) => this.zoomed(v / 100 / this.zoom)],
      ["azimuth", (v) => { this.light = directionOf(v, anglesOf(this.light)[1]); }],
      ["elevation", (v) => { this.light = directionOf(anglesOf(this.light)[0], v); }],
      ["ambient", (v) => { this.ambient = v; }],
      ["diffuse", (v) => { this.diffuse = v; }],
      ["wipe", (v) => { this.asInPhoto(); this.wipe(v); }],
    ]) {
      on(at[name], "input", () => { act(Number(at[name].value)); this.refresh(); });
    }
    on(at.front, "click", () => this.face());
    on(at.pose, "click", () => { this.wipe(0); this.asInPhoto(); });
    on(at.relit, "click", () => this.relight());
    on(at.glb, "click", () => this.saveGlb());
    on(at.png, "click", () => this.savePng());
    on(at.swing, "click", () => (this.swinging ? this.stop() : this.start(Infinity)));
    this.listenToFingers();
    on(at.canvas, "keydown", (event) => this.key(event));
    on(at.canvas, "wheel", (event) => {
      event.preventDefault();
      this.zoomed(Math.exp(-0.001 * event.deltaY));
    }, { passive: false });
    on(at.canvas, "webglcontextlost", (event) => { event.preventDefault(); this.painter = null; });
    on(at.canvas, "webglcontextrestored", () => this.begin());
    new ResizeObserver(() => this.fit()).observe(at.screen);
  }

  listenToFingers() {
    const { canvas, lamp, screen } = this.at;
    const fingers = new Map();
    const place = (event) => {
      const box = screen.getBoundingClientRect();
      return [
        (event.clientX - box.left) / box.width * 2 - 1,
        1 - (event.clientY - box.top) / box.height * 2,
      ];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = place(event);
      fingers.set(event.pointerId, now);
      const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
      if (fingers.size === 1 && !event.shiftKey) {
        this.turned(this.yaw + 90 * dx, this.pitch + 90 * dy);
      } else {
        const [x, y] = this.lampAt();
        this.lampTo(x + 1.2 * dx / fingers.size, y + 1.2 * dy / fingers.size);
      }
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    }
    lamp.addEventListener("pointerdown", (event) => {
      lamp.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    lamp.addEventListener("pointermove", (event) => {
      if (!lamp.hasPointerCapture(event.pointerId)) return;
      const [x, y] = place(event);
      this.lampTo(x / 0.84, y / 0.84);
    });
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1],
      ArrowDown: [0, -1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = steps[event.key];
    if (step && event.shiftKey) {
      const [x, y] = this.lampAt();
      this.lampTo(x + 0.1 * step[0], y + 0.1 * step[1]);
      const [azimuth, elevation] = anglesOf(this.light).map(Math.round);
      this.say(`Light ${azimuth} degrees right, ${elevation} up`);
    } else if (step) {
      this.turned(this.yaw + 5 * step[0], this.pitch + 5 * step[1]);
      this.say(`Turned ${Math.round(this.yaw)} degrees right, ${Math.round(this.pitch)} up`);
    } else if (event.key === "+" || event.key === "=") this.zoomed(1.1);
    else if (event.key === "-") this.zoomed(1 / 1.1);
    else if (event.key === "Home") this.face();
    else return;
    event.preventDefault();
  }

  say(text) {
    this.at.said.textContent = text;
  }
}

if (typeof document !== "undefined") {
  const written = document.getElementById("content");
  globalThis.viewer = new Viewer();
  if (written) globalThis.viewer.show(JSON.parse(written.textContent));
}
