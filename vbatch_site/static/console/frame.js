// Unfold makes some of its controls of elements that a keyboard can't reach and a screen reader can't name: this mends them.
(() => {
  "use strict";

  const NAMES = {
    dock_to_right: "Menu", close: "Close", unfold_more: "Account", filter_list: "Filters", cancel: "Remove",
    light_mode: "Light theme", dark_mode: "Dark theme", computer: "Theme of the system", delete: "Remove", add: "Add",
  };
  const NATIVE = "a[href], button, input, select, textarea, label, summary";

  function name(control, icon) {
    if (control.getAttribute("aria-label") || control.title) return;
    const words = [...control.childNodes].filter((node) => node !== icon).map((node) => node.textContent).join(" ").trim();
    const known = NAMES[icon?.textContent.trim()];
    if (control.matches("[x-on\\:click*='openUserLinks']")) {
      // Its text, the user's name, names it.
      control.title = "Account";
      control.setAttribute("aria-haspopup", "true");
    } else if (known && !words) control.setAttribute("aria-label", known);
  }

  function mend(root) {
    for (const icon of root.querySelectorAll(".material-symbols-outlined")) {
      if (!icon.hasAttribute("x-on:click")) icon.setAttribute("aria-hidden", "true");
    }
    for (const control of root.querySelectorAll("[x-on\\:click], a:not([href]), button")) {
      const icon = control.matches(".material-symbols-outlined") ? control : control.querySelector(".material-symbols-outlined");
      if (!control.matches(NATIVE) && control.hasAttribute("x-on:click") && !control.hasAttribute("tabindex")) {
        control.tabIndex = 0;
        control.setAttribute("role", "button");
      }
      name(control, icon === control ? null : icon);
      if (icon === control) control.setAttribute("aria-label", NAMES[icon.textContent.trim()] ?? icon.textContent.trim().replaceAll("_", " "));
    }
  }

  document.addEventListener("keydown", (event) => {
    const control = event.target;
    if ((event.key === "Enter" || event.key === " ") && control.matches?.("[role='button'][x-on\\:click]")) {
      event.preventDefault();
      control.click();
    }
    if (event.key === "Escape") {
      const menu = document.querySelector("#nav-sidebar [x-data*='openUserLinks']");
      if (menu && menu.contains(control) && menu.querySelector("[aria-expanded='true']")) {
        const opener = menu.querySelector("[aria-haspopup]");
        opener.click();
        opener.focus();
      }
    }
  });

  document.addEventListener("DOMContentLoaded", () => {
    mend(document);
    const nav = document.getElementById("nav-sidebar-inner");
    nav?.setAttribute("aria-label", "Main");
    for (const link of document.querySelectorAll("#nav-sidebar-apps a.active")) link.setAttribute("aria-current", "page");
    const opener = document.querySelector("#nav-sidebar [aria-haspopup]");
    if (!opener) return;
    const links = opener.parentElement.querySelector("nav");
    links.setAttribute("aria-label", "Account");
    const tell = () => opener.setAttribute("aria-expanded", String(links.style.display !== "none" && !links.hasAttribute("x-cloak")));
    new MutationObserver(tell).observe(links, { attributes: true, attributeFilter: ["style", "x-cloak"] });
    tell();
  });
  document.addEventListener("htmx:afterSwap", (event) => mend(event.target.parentElement ?? document));
})();
