for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input");
  const before = compare.querySelector(".before");
  const hint = compare.closest("figure").querySelector(".hint");
  const show = () => {
    compare.style.setProperty("--cut", range.value + "%");
    compare.classList.toggle("live", range.value > 0);
    range.setAttribute("aria-valuetext", range.value + " percent before");
  };
  for (const element of [range, before, hint]) element.hidden = false;
  range.addEventListener("input", show);
  show();
}
