// The clips that the page carries: fastmc/page/motion.py says how they are packed.
//
//   unpack(packed, joints) -> Promise of [Clip, ...]
//   Clip      {frames, bodies, joints, xyz, there}: xyz is a Float32Array of metres, (frame, body, joint, axis);
//             there a Uint8Array (frame, body), 0 where a body is absent from a frame
//   moved(clip, by, times) -> Clip    the clip with `times` the coordinates of `by`, a clip of the same shape, added
//   new Clips(content, motions)       the clips of content.clips and what is known of them:
//     length, skeleton, motion(i), seconds(i), name(i), isTest(i), classOf(i), className(i), nameOfClass(c),
//     field(name, i) as text, valuesOf(name): the values of a field that occur, sorted; describe(i): in a line

const page = window.fastmcPage;

async function unpack(packed, joints) {
  const planes = await inflate(packed.data);
  const half = planes.length / 2;
  const clips = [];
  let at = 0;
  packed.frames.forEach((frames, n) => {
    const bodies = packed.bodies[n];
    const quantum = Array.isArray(packed.quantum) ? packed.quantum[n] : packed.quantum;
    const size = frames * bodies * joints * 3;
    const steps = unfold(planes.subarray(at, at + size), planes.subarray(half + at, half + at + size));
    addParents(steps, packed.tree, joints);
    const xyz = addUp(steps, size / frames, quantum);
    clips.push({ frames, bodies, joints, xyz, there: new Uint8Array(frames * bodies).fill(1) });
    at += size;
  });
  for (const [n, body, first, end] of packed.absent) {
    const clip = clips[n];
    for (let frame = first; frame < end; frame += 1) clip.there[frame * clip.bodies + body] = 0;
  }
  return clips;
}

async function inflate(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n += 1) bytes[n] = text.charCodeAt(n);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// 0, 1, 2, 3, ... are 0, -1, 1, -2, ...
function unfold(low, high) {
  const steps = new Int16Array(low.length);
  for (let n = 0; n < low.length; n += 1) {
    const folded = low[n] | (high[n] << 8);
    steps[n] = (folded >> 1) ^ -(folded & 1);
  }
  return steps;
}

// A joint's steps are those beyond its parent's. 16 bits wrap around, as they did when the steps were taken.
function addParents(steps, tree, joints) {
  for (let pose = 0; pose < steps.length; pose += joints * 3) {
    for (const [child, parent] of tree) {
      for (let n = 0; n < 3; n += 1) steps[pose + child * 3 + n] += steps[pose + parent * 3 + n];
    }
  }
}

// Steps along time, `row` values a frame, summed up, in metres.
function addUp(steps, row, quantum) {
  for (let n = row; n < steps.length; n += 1) steps[n] += steps[n - row];
  return Float32Array.from(steps, (whole) => whole * quantum);
}

function moved(clip, by, times) {
  return { ...clip, xyz: clip.xyz.map((value, n) => value + times * by.xyz[n]) };
}

class Clips {
  constructor(content, motions) {
    this.columns = content.clips;
    this.classes = content.classes;
    this.skeleton = content.skeleton;
    this.motions = motions;
  }

  get length() {
    return this.columns.name.length;
  }

  motion(i) {
    return this.motions[i];
  }

  seconds(i) {
    return this.columns.seconds[i];
  }

  name(i) {
    return this.columns.name[i];
  }

  isTest(i) {
    return Boolean(this.columns.test?.[i]);
  }

  classOf(i) {
    return this.columns.class[i];
  }

  className(i) {
    return this.nameOfClass(this.classOf(i));
  }

  nameOfClass(number) {
    return number < 0 ? "class unknown" : (this.classes[number] ?? `class ${number}`);
  }

  field(name, i) {
    const value = this.columns[name]?.[i];
    return page.isThere(value) && value !== -1 ? `${name} ${value}` : `${name} unknown`;
  }

  valuesOf(name) {
    return [...new Set(this.columns[name])].sort((a, b) => a - b);
  }

  describe(i) {
    return `${this.className(i)}: ${this.name(i)}`;
  }
}

Object.assign(page, { unpack, moved, Clips });
