// A file that the server would refuse for its bytes is not sent; it is said where the server's answers stand.
const refusal = document.createElement("p");
refusal.className = "wrong";
refusal.setAttribute("role", "alert");
const megabytes = (bytes) => Number((bytes / 1e6).toPrecision(3));
document.addEventListener("click", () => refusal.remove(), true);
document.addEventListener(
  "change",
  (event) => {
    const size = event.target.type === "file" ? Math.max(...[...event.target.files].map((file) => file.size)) : 0;
    if (size <= props.most_bytes) return;
    event.stopImmediatePropagation();
    event.target.value = "";
    const most = megabytes(props.most_bytes);
    refusal.textContent = `the file has ${megabytes(size)} MB; expected at most ${most} MB; send a smaller one`;
    element.append(refusal);
  },
  true,
);
