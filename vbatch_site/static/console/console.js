// The console's only script: copying, confirming, fresh times, and polling that knows its manners.
(() => {
  "use strict";

  const UNITS = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];

  function duration(seconds) {
    const whole = Math.round(seconds);
    for (const [size, unit, small, smallUnit] of UNITS) {
      if (whole >= size) {
        const rest = Math.floor((whole % size) / small);
        return `${Math.floor(whole / size)} ${unit}` + (rest ? ` ${rest} ${smallUnit}` : "");
      }
    }
    return `${whole} s`;
  }

  function relative(date) {
    const seconds = (Date.now() - date.getTime()) / 1000;
    if (Math.abs(seconds) < 1) return "now";
    const words = duration(Math.abs(seconds)).split(" ").slice(0, 2).join(" ");
    return seconds > 0 ? `${words} ago` : `in ${words}`;
  }

  let updated = Date.now();

  function tick() {
    for (const time of document.querySelectorAll("time.vb-time")) {
      const text = relative(new Date(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
    for (const place of document.querySelectorAll("[data-updated]")) {
      const paused = busy();
      place.textContent = paused ? "Updates paused" : `Updated ${relative(new Date(updated))}`;
    }
  }
  setInterval(tick, 1000);

  // A click is lost when its button is replaced between press and release, which people take a tenth of a second for.
  const LONGEST_PRESS = 3000;  // milliseconds; a release that is never heard of stops no updates for longer
  let pressed = 0;
  document.addEventListener("pointerdown", () => { pressed = Date.now(); });
  for (const kind of ["pointerup", "pointercancel"]) {
    // The click comes after the release.
    document.addEventListener(kind, () => setTimeout(() => { pressed = 0; }));
  }

  // Someone who selects rows, types, has typed, presses a button or answers a question must not lose it to an update.
  const FIELDS = "[data-live] :is(input:not([type=checkbox], [type=hidden]), select, textarea)";
  function busy() {
    return document.hidden
      || Date.now() - pressed < LONGEST_PRESS
      || document.querySelector("dialog[open]") !== null
      || document.querySelector("[data-live] input[data-select]:checked") !== null
      || document.activeElement.matches(FIELDS)
      || [...document.querySelectorAll(FIELDS)].some((field) => field.value !== (field.defaultValue ?? field.value));
  }

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.matches("[data-live]") && busy()) event.preventDefault();
  });
  // Nor to the answer of what was asked just before.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.requestConfig?.elt.matches("[data-live]") && busy()) event.detail.shouldSwap = false;
  });
  // What has the focus keeps it when the part around it is replaced (htmx does this for what has an id), and a table
  // that was moved sideways stays there.
  const alike = (control) => [...document.querySelectorAll(control.tagName)].filter((other) =>
    ["href", "data-copy", "data-open"].every((name) => other.getAttribute(name) === control.getAttribute(name)));
  let held = null;
  let moved = [];

  document.addEventListener("htmx:beforeSwap", (event) => {
    const control = document.activeElement;
    const inside = event.detail.target?.contains(control) && !control.id;
    held = inside ? { control, place: alike(control).indexOf(control) } : null;
    moved = [...document.querySelectorAll(".vb-scroll, .vb-tabs")].map((box) => box.scrollLeft);
  });
  document.addEventListener("htmx:afterSwap", () => {
    updated = Date.now();
    tick();
    document.querySelectorAll(".vb-scroll, .vb-tabs").forEach((box, i) => { if (moved[i]) box.scrollLeft = moved[i]; });
    if (held && document.activeElement !== held.control) alike(held.control)[held.place]?.focus({ preventScroll: true });
    held = null;
  });
  document.addEventListener("htmx:sendError", () => tell("The server can't be reached. Trying again."));
  document.addEventListener("htmx:responseError", (event) => {
    const text = event.detail.xhr.getResponseHeader("content-type")?.startsWith("text/plain")
      ? event.detail.xhr.responseText : `The server answered ${event.detail.xhr.status}.`;
    tell(text);
  });

  function tell(text) {
    let place = document.getElementById("vb-tell");
    if (!place) {
      place = document.createElement("p");
      place.id = "vb-tell";
      place.className = "vb-note vb-tone-error";
      place.setAttribute("role", "status");
      document.getElementById("vb-main")?.prepend(place);
    }
    place.textContent = text;
    clearTimeout(place.timer);
    place.timer = setTimeout(() => place.remove(), 8000);
  }

  async function copy(button) {
    const source = button.dataset.copyFrom && document.getElementById(button.dataset.copyFrom);
    const text = source ? source.textContent : button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without https there is no clipboard interface; a selection can still be copied.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.classList.add("vb-copied");
    const title = button.title;
    button.title = "Copied";
    const said = document.getElementById("vb-said");
    if (said) said.textContent = "Copied";
    setTimeout(() => { button.classList.remove("vb-copied"); button.title = title; }, 1500);
  }

  // A box is for one kind of action; the empty kind is all of them.
  function selected(kind) {
    const boxes = [...document.querySelectorAll("input[data-select]:checked")];
    return boxes.filter((box) => !kind || box.dataset.select === kind).length;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.copy !== undefined || button.dataset.copyFrom !== undefined) {
      copy(button);
    } else if (button.dataset.open) {
      const dialog = document.getElementById(button.dataset.open);
      const named = dialog.querySelector("[data-selected-count]");
      if (named) named.textContent = selected(named.dataset.selectedCount);
      dialog.showModal();
    } else if (button.dataset.close !== undefined) {
      button.closest("dialog").close();
    }
  });

  // Rows that are selected: the buttons that need some are there only while there are some.
  document.addEventListener("change", (event) => {
    if (event.target.matches("input[data-select-all]")) {
      for (const box of document.querySelectorAll("input[data-select]")) box.checked = event.target.checked;
    }
    if (event.target.matches("input[data-select], input[data-select-all]")) {
      for (const place of document.querySelectorAll("[data-when-selected]")) {
        const count = selected(place.dataset.whenSelected);
        place.hidden = count === 0;
        const number = place.dataset.whenSelected && place.querySelector("[data-number]");
        if (number) number.textContent = count;
      }
      tick();
    }
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  });

  // A form is sent once, however often it is clicked.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method === "get") {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
      setTimeout(() => { for (const field of form.elements) field.disabled = false; });
      return;
    }
    if (form.dataset.sent) event.preventDefault();
    if (form.method === "dialog") return;
    form.dataset.sent = "1";
    setTimeout(() => delete form.dataset.sent, 4000);
  });
})();
