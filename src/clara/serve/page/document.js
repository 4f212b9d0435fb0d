// The page of one document. A citation's address ends with #char=120,180, which browsers keep to themselves.

const range = /^#char=(\d+,\d+)$/.exec(location.hash);
if (range && new URLSearchParams(location.search).get("char") !== range[1]) {
  location.replace(`?char=${range[1]}${location.hash}`);
}
document.querySelector("mark")?.scrollIntoView({ block: "center" });
