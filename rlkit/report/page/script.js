(function () {
  "use strict";
  var all = function (query) { return Array.prototype.slice.call(document.querySelectorAll(query)); };
  var boxes = all("[data-toggle]");
  function show(box) {
    all('svg [data-v="' + box.dataset.toggle + '"]').forEach(function (group) {
      group.classList.toggle("off", !box.checked);
    });
  }
  boxes.forEach(function (box) {
    box.addEventListener("change", function () { show(box); });
    show(box); // a reloaded page may remember its boxes
  });
  all("[data-all]").forEach(function (button) {
    button.addEventListener("click", function () {
      boxes.forEach(function (box) { box.checked = button.dataset.all === "1"; show(box); });
    });
  });
  // Pointing at a variant, in the legend or in a table, dims the others in every chart.
  function light(number) {
    document.body.classList.toggle("dim-charts", number !== null);
    all("svg.chart").forEach(function (chart) {
      chart.classList.toggle("dim", number !== null && !!chart.querySelector('[data-v="' + number + '"]'));
    });
    all("svg.chart [data-v], tr[data-v]").forEach(function (item) {
      item.classList.toggle("lit", item.dataset.v === number);
    });
  }
  function watch(item, number) {
    ["mouseenter", "focusin"].forEach(function (name) { item.addEventListener(name, function () { light(number); }); });
    ["mouseleave", "focusout"].forEach(function (name) { item.addEventListener(name, function () { light(null); }); });
  }
  boxes.forEach(function (box) { watch(box.parentNode, box.dataset.toggle); });
  all("tr[data-v]").forEach(function (row) { watch(row, row.dataset.v); });
  window.addEventListener("beforeprint", function () {
    all("details").forEach(function (item) { item.open = true; });
  });
})();
