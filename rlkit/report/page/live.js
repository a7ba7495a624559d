(function () {
  "use strict";
  var all = function (query, root) { return Array.prototype.slice.call((root || document).querySelectorAll(query)); };
  var byId = function (id) { return document.getElementById(id); };
  var every = Number(document.body.dataset.every) * 1000;
  // What is exchanged when the server has a newer page. The browser of completions renews itself.
  var PARTS = ["header .kind", "header h1", "header .verdict", "header .states", "header nav ul", "#ended", "footer"];
  var FOCUSABLE = "a[href], button, input, select, summary, [tabindex]";
  var tag = null, served = {}, paused = false;

  function state(text, name) {
    if (byId("live-state").textContent !== text) byId("live-state").textContent = text;
    document.body.classList.toggle("going", name === "going");
    document.body.classList.toggle("lost", name === "lost");
  }
  function clock() { return new Date().toLocaleTimeString(); }
  function sections(root) { return all("main > section", root).filter(function (s) { return s.id !== "browse"; }); }

  // The reader's choices in a part go over to the part that takes its place.
  function nameOf(box) { return box.closest("label").textContent.trim(); }
  function keep(old, fresh) {
    all("input[type=radio]", old).forEach(function (input) {
      var twin = fresh.querySelector("#" + input.id);
      if (twin) twin.checked = input.checked;
    });
    var boxes = {};
    all("[data-toggle]", old).forEach(function (box) { boxes[nameOf(box)] = box.checked; });
    all("[data-toggle]", fresh).forEach(function (box) { if (nameOf(box) in boxes) box.checked = boxes[nameOf(box)]; });
    var open = {};
    function key(item, place) { return item.dataset.key || place; }
    all("details", old).forEach(function (item, place) { open[key(item, place)] = item.open; });
    all("details", fresh).forEach(function (item, place) { if (key(item, place) in open) item.open = open[key(item, place)]; });
  }
  function scrolled(root) {
    return all(".scroll, pre", root).map(function (item) { return [item.scrollLeft, item.scrollTop]; });
  }
  function exchange(old, fresh) {
    keep(old, fresh);
    var places = scrolled(old), focused = all(FOCUSABLE, old).indexOf(document.activeElement);
    var name = focused < 0 ? "" : document.activeElement.textContent;
    old.replaceWith(fresh);
    all(".scroll, pre", fresh).forEach(function (item, place) {
      if (places[place]) { item.scrollLeft = places[place][0]; item.scrollTop = places[place][1]; }
    });
    if (focused < 0) return;
    var found = all(FOCUSABLE, fresh);
    var twin = found[focused] && found[focused].textContent === name ? found[focused] : found.filter(function (item) { return name && item.textContent === name; })[0] || found[focused];
    if (twin) twin.focus({ preventScroll: true });
  }
  function renew(text) {
    var page = new DOMParser().parseFromString(text, "text/html");
    var anchor = all("main > *").filter(function (item) { return item.id !== "live" && item.getBoundingClientRect().bottom > 46; })[0];
    var id = anchor && anchor.id, top = anchor && anchor.getBoundingClientRect().top, far = window.scrollY > 0;
    document.title = page.title;
    PARTS.forEach(function (query) {
      var old = document.querySelector(query), fresh = page.querySelector(query);
      if (old && fresh && served[query] !== fresh.outerHTML) { served[query] = fresh.outerHTML; exchange(old, fresh); }
    });
    var wanted = all("main > section", page), ids = wanted.map(function (item) { return item.id; });
    sections(document).forEach(function (item) { if (ids.indexOf(item.id) < 0) { delete served[item.id]; item.remove(); } });
    wanted.forEach(function (fresh, place) {
      if (fresh.id === "browse") return;
      var old = byId(fresh.id), markup = fresh.outerHTML;
      if (!old) {
        var before = wanted.slice(0, place).map(function (item) { return byId(item.id); }).filter(Boolean).pop() || byId("ended");
        before.after(fresh);
      } else if (served[fresh.id] !== markup) exchange(old, fresh);
      served[fresh.id] = markup;
    });
    document.dispatchEvent(new Event("rlkit-renewed"));
    if (far && id && byId(id)) window.scrollBy({ top: byId(id).getBoundingClientRect().top - top, behavior: "instant" });
    browse(false);
  }
  function busy() { // a reader who marks text is copying it
    var mark = window.getSelection();
    return mark && !mark.isCollapsed && byId("main").contains(mark.anchorNode);
  }
  function poll() {
    if (paused || document.hidden || busy()) return later(every);
    fetch("/", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" }).then(function (answer) {
      if (answer.status === 304) return null;
      if (!answer.ok) throw new Error(answer.status);
      tag = answer.headers.get("ETag");
      document.body.dataset.problem = answer.headers.get("X-Problem") || "";
      return answer.text();
    }).then(function (text) {
      if (text !== null) renew(text);
      var over = !byId("ended").hidden, problem = document.body.dataset.problem;
      if (problem) state("The folder cannot be read again: " + problem, "lost");
      else if (over) state("Nothing runs any more.", "");
      else if (text !== null || !document.body.classList.contains("going")) state("Renewed at " + clock() + ".", "going");
      later(every);
    }).catch(function () {
      state("rlkit watch has stopped: this is the page it had last.", "lost");
      later(5 * every);
    });
  }
  var timer = null;
  function later(time) { clearTimeout(timer); timer = setTimeout(poll, time); }
  byId("pause").addEventListener("click", function () {
    paused = !paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    byId("pause").textContent = paused ? "Go on" : "Pause";
    if (paused) state("Paused at " + clock() + ".", ""); else { state("", "going"); later(0); }
  });
  document.addEventListener("visibilitychange", function () { if (!document.hidden) later(0); });

  // The browser of completions: everything a run wrote goes in as text, never as markup.
  var form = byId("browse-form"), answer = null, shown = "", number = 0, asked = 0;
  function made(kind, name, text) {
    var item = document.createElement(kind);
    if (name) item.className = name;
    if (text !== undefined) item.textContent = text;
    return item;
  }
  function options(select, offered, first) {
    var wanted = select.value, have = all("option", select).map(function (o) { return o.value; });
    var ids = first.concat(offered);
    if (have.join("\n") === ids.map(function (o) { return o.id; }).join("\n")) return;
    select.textContent = "";
    ids.forEach(function (o) { var item = made("option", "", o.name); item.value = o.id; select.append(item); });
    select.value = ids.some(function (o) { return o.id === wanted; }) ? wanted : ids.length ? ids[0].id : "";
  }
  function row(item) {
    var box = made("article", "row"), line = made("p", "earned");
    line.append(made("b", "", "reward " + item.reward), ", advantage " + item.advantage + ", " + item.tokens + " tokens" + (item.cut ? ", cut at the limit" : "") + (item.passages.length ? ", indented text is the environment's" : "") + " · prompt " + item.index + ", sample " + item.sample);
    Object.keys(item.columns).forEach(function (name) { line.append(" · " + name + ": " + item.columns[name]); });
    box.append(line, made("p", "prompt", item.prompt));
    if (item.passages.length) item.passages.forEach(function (p) { box.append(made("pre", p.sampled ? "said" : "heard", p.text)); });
    else box.append(made("pre", "", item.completion));
    return box;
  }
  function draw(found) {
    answer = found;
    options(byId("browse-job"), found.jobs, []);
    byId("browse-job").value = found.job;
    byId("browse-job-label").hidden = found.jobs.length < 2;
    options(byId("browse-file"), found.files, [{ id: "newest", name: "the newest" }]);
    var place = found.files.findIndex(function (file) { return file.id === found.file; });
    byId("newer").disabled = place <= 0;
    byId("older").disabled = place < 0 || place === found.files.length - 1;
    byId("back").disabled = found.page === 0;
    byId("on").disabled = found.page >= found.pages - 1;
    number = found.page;
    var label = place < 0 ? "" : found.files[place].name, last = found.first + found.rows.length;
    var count = found.total ? (found.found ? found.first + 1 + "–" + last + " of " + found.found : "none") + (found.found < found.total ? " that match, of " + found.total : "") + ", " + label : "No completions yet.";
    if (byId("browse-count").textContent !== count) byId("browse-count").textContent = count;
    var text = JSON.stringify(found.rows);
    if (text === shown) return;
    shown = text;
    byId("rows").replaceChildren.apply(byId("rows"), found.rows.map(row));
  }
  function browse(anew) {
    if (anew) number = 0;
    var query = new URLSearchParams(new FormData(form)), mine = ++asked;
    query.set("page", number);
    return fetch("/samples?" + query, { cache: "no-store" }).then(function (found) { return found.json(); }).then(function (found) {
      if (mine === asked) draw(found);
    }).catch(function () { /* the poll says so */ });
  }
  function turn(step) { number += step; browse(false); }
  function to(step) { // to an older or a newer file
    var place = answer.files.findIndex(function (file) { return file.id === answer.file; }) + step;
    if (!answer.files[place]) return;
    byId("browse-file").value = answer.files[place].id;
    browse(true);
  }
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("input", function () { browse(true); });
  byId("back").addEventListener("click", function () { turn(-1); });
  byId("on").addEventListener("click", function () { turn(1); });
  byId("older").addEventListener("click", function () { to(1); });
  byId("newer").addEventListener("click", function () { to(-1); });

  sections(document).forEach(function (item) { served[item.id] = item.outerHTML; });
  browse(true);
  poll();
})();
