(function () {
  "use strict";
  // Events are handled at the document: a live page exchanges what is below it.
  var all = function (query) { return Array.prototype.slice.call(document.querySelectorAll(query)); };
  function show(box) {
    all('svg [data-v="' + box.dataset.toggle + '"]').forEach(function (group) {
      group.classList.toggle("off", !box.checked);
    });
  }
  function renew() { all("[data-toggle]").forEach(show); }
  document.addEventListener("change", function (event) {
    if (event.target.dataset.toggle !== undefined) show(event.target);
  });
  document.addEventListener("click", function (event) {
    var button = event.target.closest("[data-all]");
    if (!button) return;
    all("[data-toggle]").forEach(function (box) { box.checked = button.dataset.all === "1"; });
    renew();
  });
  document.addEventListener("rlkit-renewed", renew);
  renew(); // a reloaded page may remember its boxes

  // Pointing at a variant, in the legend or in a table, dims the others in every chart.
  var lit = null;
  function light(number) {
    if (number === lit) return;
    lit = number;
    all("svg.chart").forEach(function (chart) {
      chart.classList.toggle("dim", number !== null && !!chart.querySelector('[data-v="' + number + '"]'));
    });
    all("svg.chart [data-v], tr[data-v]").forEach(function (item) {
      item.classList.toggle("lit", item.dataset.v === number);
    });
  }
  function meant(target) {
    var label = target.closest ? target.closest(".legend label") : null;
    var item = label ? label.querySelector("[data-toggle]") : target.closest && target.closest("tr[data-v]");
    return item ? item.dataset.toggle || item.dataset.v : null;
  }
  ["mouseover", "focusin"].forEach(function (name) {
    document.addEventListener(name, function (event) { light(meant(event.target)); });
  });
  document.addEventListener("focusout", function () { light(null); });
  document.addEventListener("mouseleave", function () { light(null); });
  window.addEventListener("beforeprint", function () {
    all("details").forEach(function (item) { item.open = true; });
  });
})();
