// Upload a file in parts: real progress, and going on where the connection broke.
(() => {
  "use strict";

  const root = document.getElementById("upload");
  if (!root) return;
  const input = root.querySelector("input[type=file]");
  const drop = root.querySelector(".vb-drop");
  const state = root.querySelector("[data-state]");
  const said = root.querySelector("[data-said]");
  const bar = root.querySelector("progress");
  const again = root.querySelector("[data-again]");
  const project = root.querySelector("select");
  const LARGEST = Number(root.dataset.largest);
  const LONGEST_WAIT = 15;  // seconds between two attempts
  let busy = false;

  // Unfold's script takes every file field for one of its own, and breaks on ours, unless it has done so already.
  input.hasChangeListener = true;

  const size = (bytes) => bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
  const wait = (seconds) => new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    again.onclick = () => { clearTimeout(timer); resolve(); };
    window.addEventListener("online", () => { clearTimeout(timer); resolve(); }, { once: true });
  });

  class Refused extends Error {}

  function send(method, url, body, type, progress) {
    return new Promise((resolve, reject) => {
      const call = new XMLHttpRequest();
      call.open(method, url);
      call.setRequestHeader("X-CSRFToken", root.dataset.csrf);
      call.setRequestHeader("Accept", "application/json");
      if (type) call.setRequestHeader("Content-Type", type);
      call.timeout = 120000;
      if (progress) call.upload.onprogress = (event) => progress(event.loaded);
      call.onerror = call.ontimeout = call.onabort = () => reject(new Error("connection"));
      call.onload = () => {
        let answer = {};
        try { answer = JSON.parse(call.responseText); } catch { /* no JSON: told by the status */ }
        if (call.status >= 200 && call.status < 300) return resolve(answer);
        const text = answer.error?.message ?? `The server answered ${call.status}.`;
        // Too late, too slow and our own faults pass; everything else will be refused again.
        reject([408, 429, 500, 502, 503, 504].includes(call.status) ? new Error("connection") : new Refused(text));
      };
      call.send(body);
    });
  }

  async function patiently(attempt) {
    for (let tries = 0; ; tries += 1) {
      try {
        const answer = await attempt();
        again.hidden = true;
        return answer;
      } catch (error) {
        if (error instanceof Refused) throw error;
        const seconds = Math.min(2 ** tries, LONGEST_WAIT);
        state.textContent = `The connection broke. Going on in ${seconds} s.`;
        said.textContent = "The connection broke; the upload goes on by itself.";
        again.hidden = false;
        await wait(seconds);
      }
    }
  }

  const nameOf = (file) => `vbatch-upload:${project.value}:${file.name}:${file.size}:${file.lastModified}`;

  async function resumed(file) {
    let kept = null;
    try { kept = JSON.parse(localStorage.getItem(nameOf(file))); } catch { /* none */ }
    if (!kept) return null;
    try {
      const now = await send("GET", `${root.dataset.url}/${kept.id}`);
      const there = new Set(now.parts);
      if (now.state !== "pending" || now.part_bytes !== kept.partBytes) return null;
      kept.parts = kept.parts.map((part) => (there.has(part) ? part : null));
      return kept;
    } catch {
      return null;
    }
  }

  async function upload(file) {
    if (busy || !file) return;
    if (file.size > LARGEST) return fail(`${file.name} has ${size(file.size)}; a batch file may have ${size(LARGEST)}.`);
    if (file.size === 0) return fail(`${file.name} is empty.`);
    busy = true;
    drop.hidden = true;
    bar.parentElement.hidden = false;
    bar.max = file.size;
    try {
      await run(file);
    } catch (error) {
      busy = false;
      drop.hidden = false;
      bar.parentElement.hidden = true;
      fail(error.message);
    }
  }

  function fail(text) {
    const place = root.querySelector("[role=alert]");
    place.textContent = text;
    place.hidden = false;
  }

  async function run(file) {
    root.querySelector("[role=alert]").hidden = true;
    const wanted = JSON.stringify({ project: project.value, filename: file.name, bytes: file.size });
    let kept = await resumed(file);
    if (kept) {
      said.textContent = "Going on with an upload that was begun earlier.";
    } else {
      const begun = await patiently(() => send("POST", root.dataset.url, wanted, "application/json"));
      kept = { id: begun.id, partBytes: begun.part_bytes, parts: [] };
    }
    const count = Math.ceil(file.size / kept.partBytes);
    const started = performance.now();
    const length = (number) => Math.min((number + 1) * kept.partBytes, file.size) - number * kept.partBytes;
    let done = 0;
    for (let number = 0; number < count; number += 1) if (kept.parts[number]) done += length(number);
    const before = done;
    const show = (now) => {
      bar.value = now;
      const rate = (now - before) / Math.max((performance.now() - started) / 1000, 0.001);
      const left = rate > 0 ? `, ${Math.ceil((file.size - now) / rate)} s left` : "";
      state.textContent = `${file.name}: ${size(now)} of ${size(file.size)}, ${Math.floor((100 * now) / file.size)} %${left}`;
    };
    show(done);
    for (let number = 0; number < count; number += 1) {
      if (kept.parts[number]) continue;
      const piece = file.slice(number * kept.partBytes, number * kept.partBytes + length(number));
      const answer = await patiently(() => send(
        "POST", `${root.dataset.url}/${kept.id}/parts`, piece, "application/octet-stream",
        (loaded) => show(done + Math.min(loaded, piece.size)),
      ));
      kept.parts[number] = answer.id;
      done += piece.size;
      show(done);
      try { localStorage.setItem(nameOf(file), JSON.stringify(kept)); } catch { /* resuming is a comfort */ }
    }
    state.textContent = "Uploaded. Putting the parts together.";
    const joined = await patiently(() => send(
      "POST", `${root.dataset.url}/${kept.id}/complete`, JSON.stringify({ part_ids: kept.parts }), "application/json",
    ));
    localStorage.removeItem(nameOf(file));
    window.location.assign(joined.next);
  }

  input.addEventListener("change", () => upload(input.files[0]));
  // Chosen while this script was still on its way.
  if (input.files.length) upload(input.files[0]);
  for (const kind of ["dragover", "dragenter"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("vb-over"); });
  }
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("vb-over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); upload(event.dataTransfer.files[0]); });
})();
