"use strict";
// Filters the table of BatchNormalizations; "#q=text" in the address sets the filter.
(() => {
  const query = document.getElementById("query");
  if (!query) return;
  const rows = Array.from(document.querySelectorAll("#norms > tbody > tr"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const buttons = Array.from(document.querySelectorAll("button[data-show]"));
  const count = document.getElementById("count");
  let show = "all";

  const apply = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    rows.forEach((row, i) => {
      const fits = (show === "all" || row.dataset.status === show) &&
        words.every((word) => texts[i].includes(word));
      row.hidden = !fits;
      visible += fits ? 1 : 0;
    });
    count.textContent = `${visible} of ${rows.length} shown`;
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.show === show)));
  };
  const follow = () => {
    const hash = location.hash.slice(1);
    const wanted = new URLSearchParams(hash).get("q");
    if (wanted !== null) query.value = wanted;
    const row = hash.startsWith("bn-") ? document.getElementById(hash) : null;
    if (row) {
      query.value = "";
      show = "all";
    }
    apply();
    if (row) {
      row.querySelector("details").open = true;
      row.scrollIntoView({ block: "center" });
    }
  };
  query.addEventListener("input", apply);
  buttons.forEach((b) => b.addEventListener("click", () => {
    show = b.dataset.show;
    apply();
  }));
  addEventListener("hashchange", follow);
  document.querySelectorAll(".needs-script").forEach((e) => e.classList.remove("needs-script"));
  follow();
})();
