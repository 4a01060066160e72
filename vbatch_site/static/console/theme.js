// Take over the theme that the admin remembers, before the page is drawn.
(() => {
  "use strict";
  let theme = "auto";
  try { theme = JSON.parse(localStorage.getItem("_x_adminTheme") ?? localStorage.getItem("adminTheme") ?? '"auto"'); } catch { /* keep */ }
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.classList.toggle("dark", dark);
})();
