// A skeleton that moves, on a canvas.
//
//   new Camera(skeleton)           from where players look; who shares one turns together: turn(right, up), reset()
//   new Player(skeleton, options)  options: camera; size "large" | "small"; controls: a bar to play, pause and scrub;
//                                  empty: what it says while it has nothing to play
//     element                      put it into the page; its size is that of the style (.player)
//     show(clip, {seconds, index, label, ghost, still})   plays from the start, in real time, and again, or stands
//                                  still. index becomes data-playing of the canvas while it plays; label is for those
//                                  who hear the page; ghost is a clip of the same frames, drawn paler behind
//     swap(clip)                   another clip of the same frames goes on from the same moment (a slider moves)
//     clear(words), play(), pause(), toggle(), destroy()
//   Drag or arrow keys turn it, Space pauses. Left, right and middle have the colours --left, --right, --middle; a
//   second body is paler. Bodies that are absent are not drawn. Lengths are to scale: the floor has a line each half
//   metre.

const page = window.fastmcPage;
const { make, button, seconds: secondsText } = page;

const HOLD = 0.5; // seconds that the last frame stands before it all begins again
const TURN = 0.01; // radians a pixel
const KEY_TURN = 0.15;
const BODY_ALPHA = [1, 0.45];
const FLOOR_LINES = 0.5; // metres
const MARGIN = 0.2; // metres about a clip

const running = new Set();
const onScreen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.player?.setSeen(entry.isIntersecting);
});
const resized = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.player?.draw();
});

function tick(now) {
  for (const player of running) player.advance(now);
  if (running.size) requestAnimationFrame(tick);
}

function run(player) {
  if (!running.size) requestAnimationFrame(tick);
  running.add(player);
}

class Camera {
  constructor(skeleton) {
    const { across, up, signs } = skeleton.front ?? { across: 0, up: 1, signs: [1, 1] };
    this.right = axis(across, signs[0]);
    this.up = axis(up, signs[1]);
    this.near = cross(this.right, this.up);
    this.players = new Set();
    this.reset();
  }

  reset() {
    this.yaw = 0.3;
    this.pitch = 0.14;
    this.players.forEach((player) => player.draw());
  }

  turn(right, up) {
    this.yaw += right;
    this.pitch = Math.min(1.5, Math.max(-0.6, this.pitch + up));
    this.players.forEach((player) => player.draw());
  }

  // A function of (x, y, z) in metres that gives [across, up, towards us] as seen from here.
  view() {
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    const { right, up, near } = this;
    return (x, y, z) => {
      const r = right[0] * x + right[1] * y + right[2] * z;
      const u = up[0] * x + up[1] * y + up[2] * z;
      const n = near[0] * x + near[1] * y + near[2] * z;
      const forward = cy * n - sy * r;
      return [cy * r + sy * n, cp * u - sp * forward, sp * u + cp * forward];
    };
  }
}

const axis = (which, sign) => [0, 1, 2].map((n) => (n === which ? sign : 0));
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, x, y, z) => a[0] * x + a[1] * y + a[2] * z;

// The room a clip takes across, up and in depth, metres: its middle and its size.
function roomOf(clip, camera) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  eachThere(clip, (x, y, z) => {
    [camera.right, camera.up, camera.near].forEach((direction, n) => {
      const value = dot(direction, x, y, z);
      low[n] = Math.min(low[n], value);
      high[n] = Math.max(high[n], value);
    });
  });
  if (low[0] > high[0]) return { middle: [0, 0, 0], size: [1, 1, 1], low: 0, flat: true };
  const size = low.map((value, n) => high[n] - value);
  return { middle: low.map((value, n) => value + size[n] / 2), size, low: low[1], flat: size[2] < 1e-6 };
}

// Between a and b, whose neighbours in time are p and q: Catmull and Rom's curve, which goes through all frames and has
// no kink in them. Few frames of a clip are kept.
function smooth(p, a, b, q, share) {
  const [bent, straight] = [2 * p - 5 * a + 4 * b - q, b - p];
  return a + 0.5 * share * (straight + share * (bent + share * (3 * (a - b) + q - p)));
}

function multiplesWithin(low, high) {
  const first = Math.ceil(low / FLOOR_LINES);
  const count = Math.floor(high / FLOOR_LINES) - first + 1;
  return Array.from({ length: Math.max(count, 0) }, (_, n) => (first + n) * FLOOR_LINES);
}

function eachThere(clip, use) {
  const row = clip.joints * 3;
  clip.there.forEach((there, n) => {
    if (!there) return;
    for (let at = n * row; at < (n + 1) * row; at += 3) use(clip.xyz[at], clip.xyz[at + 1], clip.xyz[at + 2]);
  });
}

class Player {
  constructor(skeleton, { camera, size = "small", controls = false, empty = "" } = {}) {
    this.skeleton = skeleton;
    this.camera = camera ?? new Camera(skeleton);
    this.camera.players.add(this);
    this.head = skeleton.joints.findIndex((name) => /^head$/i.test(name));
    this.canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": empty || "nothing plays" });
    this.canvas.player = this;
    this.words = make("p", { class: "player-empty" }, empty);
    this.element = make("div", { class: `player player-${size}` }, this.canvas, this.words);
    if (controls) this.element.append(this.makeControls());
    this.time = 0;
    this.playing = false;
    this.seen = true;
    this.listen();
    onScreen.observe(this.canvas);
    resized.observe(this.canvas);
    this.forgetTheme = page.onTheme(() => this.draw());
  }

  makeControls() {
    this.toggleButton = button("▶", () => this.toggle(), { class: "quiet", "aria-label": "Play" });
    this.slider = make("input", {
      type: "range",
      min: 0,
      max: 1,
      step: "any",
      value: 0,
      "aria-label": "Moment of the clip",
    });
    this.slider.addEventListener("input", () => {
      this.pause();
      this.time = this.slider.value * this.seconds;
      this.draw();
    });
    this.clock = make("span", { class: "clock" });
    const front = button("Front view", () => this.camera.reset(), {
      class: "quiet",
      title: "Look from the front again",
    });
    const colours = ["left", "right"].map((side) => make("span", { class: side }, side));
    const hasSides = this.skeleton.sides.includes("left");
    return make(
      "div",
      {},
      make("div", { class: "player-controls" }, this.toggleButton, this.slider, this.clock),
      make(
        "div",
        { class: "player-controls below" },
        make("div", { class: "sides" }, hasSides ? colours : "drag to turn"),
        front,
      ),
    );
  }

  show(clip, { seconds = 1, index = "", label = "", ghost = null, still = false } = {}) {
    Object.assign(this, { clip, index, ghost, seconds: Math.max(seconds, 0.1), time: 0, started: null });
    this.room = roomOf(clip, this.camera);
    this.words.textContent = "";
    this.canvas.setAttribute("aria-label", `${label} plays as a moving skeleton. Arrow keys turn it, Space pauses.`);
    if (still) this.pause();
    else this.play();
    this.draw();
  }

  swap(clip) {
    this.clip = clip;
    this.draw();
  }

  clear(words = "") {
    this.pause();
    this.clip = null;
    this.words.textContent = words;
    this.canvas.setAttribute("aria-label", words);
    this.draw();
  }

  play() {
    if (!this.clip) return;
    this.playing = true;
    this.started = null;
    this.tell();
    if (this.seen) run(this);
  }

  pause() {
    this.playing = false;
    running.delete(this);
    this.tell();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  destroy() {
    this.pause();
    this.camera.players.delete(this);
    onScreen.unobserve(this.canvas);
    resized.unobserve(this.canvas);
    this.forgetTheme();
    this.clip = null;
  }

  tell() {
    if (this.playing) this.canvas.dataset.playing = this.index;
    else delete this.canvas.dataset.playing;
    this.toggleButton?.replaceChildren(this.playing ? "❚❚" : "▶");
    this.toggleButton?.setAttribute("aria-label", this.playing ? "Pause" : "Play");
  }

  setSeen(seen) {
    this.seen = seen;
    this.started = null;
    if (seen && this.playing) run(this);
    else running.delete(this);
  }

  advance(now) {
    this.started ??= now - this.time * 1000;
    this.time = ((now - this.started) / 1000) % (this.seconds + HOLD);
    this.draw();
  }

  listen() {
    const { canvas } = this;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      last = event;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      this.camera.turn((event.clientX - last.clientX) * TURN, (event.clientY - last.clientY) * TURN);
      last = event;
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
    page.onKeys(canvas, (key) => this.press(key));
  }

  press(key) {
    const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key];
    if (turns) this.camera.turn(turns[0] * KEY_TURN, turns[1] * KEY_TURN);
    else if (key === " ") this.toggle();
    else return false;
  }

  draw() {
    const pen = this.fit();
    if (!pen) return;
    if (!this.clip) return;
    const share = Math.min(this.time / this.seconds, 1);
    if (this.slider) {
      if (document.activeElement !== this.slider || this.playing) this.slider.value = share;
      this.clock.textContent = `${(share * this.seconds).toFixed(1)} of ${secondsText(this.seconds)}`;
    }
    this.drawFloor(pen);
    if (this.ghost) this.drawClip(pen, this.ghost, share, true);
    this.drawClip(pen, this.clip, share, false);
  }

  // The canvas as large as it is on the screen, in the screen's own pixels, and empty.
  fit() {
    const { canvas } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const pen = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    if (!width || !height) return null;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (this.clip) {
      const [across, upwards] = this.extent();
      this.scale = Math.min(width / across, height / upwards);
      const look = this.camera.view();
      const [mx, my] = look(...this.inData(this.room.middle));
      this.project = (x, y, z) => {
        const [a, u, n] = look(x, y, z);
        return [width / 2 + (a - mx) * this.scale, height * 0.5 - (u - my) * this.scale, n];
      };
    }
    this.colours = page.colours();
    return pen;
  }

  // How wide and high the clip with its floor is as the camera sees it, metres.
  extent() {
    const [across, upwards, depth] = this.room.size.map((size) => size + 2 * MARGIN);
    const { yaw, pitch } = this.camera;
    const [c, s] = [Math.abs(Math.cos(yaw)), Math.abs(Math.sin(yaw))];
    return [across * c + depth * s, upwards * Math.cos(pitch) + (across * s + depth * c) * Math.abs(Math.sin(pitch))];
  }

  // A point given across, up and in depth in the coordinates of the data.
  inData([across, up, depth]) {
    const { right, up: upward, near } = this.camera;
    return [0, 1, 2].map((n) => across * right[n] + up * upward[n] + depth * near[n]);
  }

  drawFloor(pen) {
    const { middle, size, low, flat } = this.room;
    if (flat) return;
    const [left, right] = [middle[0] - size[0] / 2 - MARGIN, middle[0] + size[0] / 2 + MARGIN];
    const [far, near] = [middle[2] - size[2] / 2 - MARGIN, middle[2] + size[2] / 2 + MARGIN];
    const go = (how, across, depth) => pen[how](...this.project(...this.inData([across, low, depth])).slice(0, 2));
    pen.fillStyle = pen.strokeStyle = this.colours.floor;
    pen.lineWidth = 1;
    pen.beginPath();
    go("moveTo", left, far);
    for (const corner of [
      [right, far],
      [right, near],
      [left, near],
    ])
      go("lineTo", ...corner);
    pen.globalAlpha = 0.35;
    pen.fill();
    pen.globalAlpha = 1;
    pen.beginPath();
    for (const across of multiplesWithin(left, right)) {
      go("moveTo", across, far);
      go("lineTo", across, near);
    }
    for (const depth of multiplesWithin(far, near)) {
      go("moveTo", left, depth);
      go("lineTo", right, depth);
    }
    pen.stroke();
  }

  drawClip(pen, clip, share, ghost) {
    const at = share * (clip.frames - 1);
    for (let body = clip.bodies - 1; body >= 0; body -= 1) {
      const points = this.pointsAt(clip, body, at);
      if (points) this.drawBody(pen, points, ghost ? 0.28 : BODY_ALPHA[Math.min(body, 1)], ghost);
    }
  }

  // Where the joints of a body are on the canvas between two frames; null while it is absent.
  pointsAt(clip, body, at) {
    const before = Math.min(Math.floor(at), clip.frames - 1);
    const after = Math.min(before + 1, clip.frames - 1);
    const [thereBefore, thereAfter] = [before, after].map((frame) => clip.there[frame * clip.bodies + body]);
    const nearer = at - before < 0.5 ? thereBefore : thereAfter;
    if (!nearer) return null;
    const share = thereBefore && thereAfter ? at - before : Number(!thereBefore);
    const [from, to] = [before, after].map((frame) => (frame * clip.bodies + body) * clip.joints * 3);
    const row = to - from;
    const isThere = (frame) => frame >= 0 && frame < clip.frames && clip.there[frame * clip.bodies + body];
    const [first, last] = [isThere(before - 1) ? from - row : from, isThere(after + 1) ? to + row : to];
    return Array.from({ length: clip.joints }, (_, joint) => {
      const mix = (n) => smooth(...[first, from, to, last].map((start) => clip.xyz[start + joint * 3 + n]), share);
      return this.project(mix(0), mix(1), mix(2));
    });
  }

  // Bones and joints, what is far first: a hand before the head is seen, one behind it is not.
  drawBody(pen, points, alpha, ghost) {
    const { sides, bones } = this.skeleton;
    const width = Math.min(Math.max(0.042 * this.scale, 1.6), 7);
    const colour = (joint) => (ghost ? this.colours.middle : (this.colours[sides[joint]] ?? this.colours.middle));
    const depth = ([a, b = a]) => points[a][2] + points[b][2];
    const parts = [...bones, ...points.map((_, joint) => [joint])].sort((a, b) => depth(a) - depth(b));
    pen.globalAlpha = alpha;
    pen.lineCap = "round";
    pen.lineWidth = width;
    for (const [joint, parent] of parts) {
      const [x, y] = points[joint];
      pen.strokeStyle = pen.fillStyle = colour(joint);
      pen.beginPath();
      if (parent === undefined) {
        pen.arc(x, y, joint === this.head ? 0.1 * this.scale : bones.length ? width * 0.62 : width, 0, 7);
        pen.fill();
      } else {
        pen.moveTo(x, y);
        pen.lineTo(points[parent][0], points[parent][1]);
        pen.stroke();
      }
    }
    pen.globalAlpha = 1;
  }
}

Object.assign(page, { Camera, Player });
