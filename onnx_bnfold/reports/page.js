"use strict";
// What the page does beyond showing: it filters the list of BatchNormalizations, remembers that in
// the address ("#q=text&show=kept"), lets arrow keys walk along the squares, and unpacks what a
// large page has compressed.
(() => {
  const byId = (id) => document.getElementById(id);
  document.documentElement.classList.add("script");

  // --- what comes later ---------------------------------------------------------------------
  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  let parts;
  const fill = async (details) => {
    const number = details.dataset.later;
    if (number === undefined) return;
    delete details.dataset.later;
    parts ??= unpacked("later").then(JSON.parse);
    const text = (await parts)[number];
    details.querySelector(".missing")?.remove();
    details.insertAdjacentHTML("beforeend", text);
    hint();
  };
  document.addEventListener("toggle", (event) => event.target.open && fill(event.target), true);
  byId("save")?.addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await unpacked("data")], { type: "application/json" }));
    link.download = `${document.title}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  // --- what scrolls says so -----------------------------------------------------------------
  const hint = () => document.querySelectorAll(".scroll").forEach((box) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    box.nextElementSibling.hidden = !scrolls;
    if (scrolls) box.tabIndex = 0; // the arrow keys scroll it, too
    else box.removeAttribute("tabindex");
  });
  addEventListener("resize", hint);
  hint();

  const list = byId("norms");
  if (!list) return;

  // --- the list -----------------------------------------------------------------------------
  const rows = Array.from(list.children);
  const names = rows.map((row) => row.querySelector("code").textContent);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  // A row of a long list gets its details when it comes near: 5,000 of them open slowly.
  const equip = (row) => {
    if (row.querySelector("details")) return;
    const details = document.createElement("details");
    details.dataset.later = rows.indexOf(row);
    details.append(document.createElement("summary"));
    details.firstChild.textContent = "the graph around it";
    row.append(details);
  };
  if ("later" in list.dataset) {
    const near = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
      if (!isIntersecting) return;
      equip(target);
      near.unobserve(target);
    }), { rootMargin: "600px" });
    rows.forEach((row) => near.observe(row));
  }
  const query = byId("query");
  const buttons = Array.from(document.querySelectorAll("button[data-show]"));
  const apply = ({ q, show }) => {
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    rows.forEach((row, i) => {
      const fits = (show === "all" || row.classList.contains(show)) &&
        words.every((word) => texts[i].includes(word));
      row.hidden = !fits;
      visible += fits ? 1 : 0;
    });
    if (query.value !== q) query.value = q;
    byId("count").textContent = `${visible} of ${rows.length} shown`;
    byId("nothing").hidden = visible > 0;
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.show === show)));
  };
  const reveal = (id, focuses) => {
    const row = id.startsWith("bn-") ? byId(id) : null;
    list.querySelector(".here")?.classList.remove("here");
    if (!row) return false;
    row.classList.add("here");
    equip(row);
    row.querySelector("details").open = true;
    row.scrollIntoView({ block: "center" });
    if (focuses) row.querySelector("summary").focus({ preventScroll: true });
    return true;
  };

  // --- the address: an entry of the history says which filter it has, and where it was left ---
  const everything = { q: "", show: "all" };
  const asked = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const show = given.get("show");
    return { q: given.get("q") ?? "", show: ["folded", "kept"].includes(show) ? show : "all" };
  };
  const address = ({ q, show }) => {
    const given = new URLSearchParams();
    if (q) given.set("q", q);
    if (show !== "all") given.set("show", show);
    return `#${String(given) || "list"}`;
  };
  let now = everything;
  const keep = (hash, more) => history.replaceState({ ...now, ...more }, "", hash || undefined);
  const go = (hash, filter) => {
    keep(location.hash, { y: scrollY });
    now = filter;
    history.pushState(now, "", hash);
    apply(now);
  };
  const toList = () => byId("list").scrollIntoView();
  const follow = (hash, focuses) => {
    if (hash.startsWith("#bn-")) {
      go(hash, everything);
      reveal(hash.slice(1), focuses);
    } else {
      const given = new URLSearchParams(hash.slice(1));
      go(hash, { q: given.get("q") ?? "", show: given.get("show") ?? "all" });
      toList();
    }
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#bn-'], a[href^='#q=']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    follow(link.getAttribute("href"), true);
  });
  buttons.forEach((b) => b.addEventListener("click", () => {
    const filter = { q: query.value, show: b.dataset.show };
    go(address(filter), filter);
    toList();
  }));
  let typed = false;
  query.addEventListener("focus", () => { typed = false; });
  query.addEventListener("input", () => {
    const filter = { q: query.value, show: now.show };
    if (typed) {
      now = filter;
      keep(address(now));
      apply(now);
    } else {
      go(address(filter), filter);
    }
    typed = true;
    toList();
  });
  addEventListener("popstate", (event) => {
    typed = false;
    const plain = location.hash === "" || /[=]|^#bn-/.test(location.hash);
    const left = event.state; // null where the browser itself has followed a link
    now = left ? { q: left.q, show: left.show } : plain ? asked() : now;
    keep(location.hash);
    apply(now);
    if (left?.y !== undefined) scrollTo(0, left.y);
    else if (!reveal(location.hash.slice(1), false) && location.hash.includes("=")) toList();
  });

  // --- the squares: one tab stop ------------------------------------------------------------
  const strip = document.querySelector(".strip");
  const squares = Array.from(strip.children);
  const said = (i) => `${names[i]}, ${rows[i].className.split(" ")[0]}`;
  squares.forEach((square, i) => {
    square.tabIndex = i ? -1 : 0;
    square.setAttribute("aria-label", said(i));
  });
  const tell = (event) => {
    const i = squares.indexOf(event.target);
    if (i >= 0) byId("says").textContent = `${i + 1}: ${said(i)}`;
  };
  strip.addEventListener("pointerover", tell);
  strip.addEventListener("focusin", (event) => {
    squares.forEach((square) => { if (square.tabIndex === 0) square.tabIndex = -1; });
    event.target.tabIndex = 0;
    tell(event);
  });
  strip.addEventListener("keydown", (event) => {
    const i = squares.indexOf(event.target);
    const top = squares[0].offsetTop;
    const below = squares.findIndex((square) => square.offsetTop !== top);
    const line = below < 0 ? squares.length : below;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + line, ArrowUp: i - line,
      Home: 0, End: squares.length - 1 }[event.key];
    if (to === undefined || !squares[to]) return;
    event.preventDefault();
    squares[to].focus();
  });

  now = history.state?.q === undefined ? asked() : { q: history.state.q, show: history.state.show };
  keep(location.hash);
  apply(now);
  if (!reveal(location.hash.slice(1), false) && location.hash.includes("=")) toList();
})();
