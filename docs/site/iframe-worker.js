// The search runs in a worker, which browsers refuse to pages opened from a folder. There it runs in a hidden frame.
// Material's offline plugin would load such a thing from a server; by its name it sees that there is one.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #sent = []
    #frame = document.createElement("iframe")

    constructor(url) {
      super()
      this.#frame.hidden = true
      this.#frame.srcdoc = "<!doctype html>"
      this.#frame.addEventListener("load", () => this.#start(new URL(url, location.href).href), { once: true })
      document.body.append(this.#frame)
    }

    #start(url) {
      const inside = this.#frame.contentWindow
      const load = (source) => new Promise((resolve, reject) => {
        const script = inside.document.createElement("script")
        Object.assign(script, { src: source, onload: resolve, onerror: reject })
        inside.document.head.append(script)
      })
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...sources) => Promise.all(sources.map(load))
      load(url).then(() => {
        const waiting = this.#sent
        this.#sent = null
        waiting.forEach((data) => this.postMessage(data))
      })
    }

    postMessage(data) {
      if (this.#sent) this.#sent.push(data)
      else this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }))
    }

    terminate() {
      this.#frame.remove()
    }
  }
}
