"""A server that speaks SGLang's HTTP interface and its replay contract, over our own sampler, in a thread.

It decodes as SGLang's block diffusion does: blocks from the prompt's first token, each to its end, until one holds EOS.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.contract import to_reply
from lockstitch.sampling.loop import sample
from safetensors.torch import load_file


class FakeEngine:
    """What the server does; `spoil(replies)` may change what it says, `refuse(path, number)` answer in its place.

    Attributes:
        asked: (path, body) of every request.
        weights: the names and tensors of the last update.
    """

    def __init__(self, denoiser, block=4, threshold=0.6, key=None, load=True):
        self.denoiser, self.block, self.threshold, self.key, self.load = denoiser, block, threshold, key, load
        self.version, self.asked, self.weights, self.lock = "default", [], None, threading.Lock()
        self.spoil = self.refuse = lambda *_: None

    def config(self, length, greedy=False, temperature=1.0, top_p=1.0, top_k=-1):
        """The sampler's settings: SGLang's LowConfidence."""
        drawn = (
            {}
            if greedy
            else {
                "temperature": temperature,
                "top_p": None if top_p == 1 else top_p,
                "top_k": None if top_k == -1 else top_k,
            }
        )
        return SamplerConfig(
            length,
            block_length=self.block,
            whole_blocks=True,
            policy="threshold",
            threshold=self.threshold,
            stop_at_eos=False,
            **drawn,
        )

    def generate(self, body):
        assert body["return_step_maps"] is True
        rows = list(zip(body["input_ids"], body["sampling_params"], strict=True))
        replies = [None] * len(rows)
        for most in {given["max_new_tokens"] for _, given in rows}:
            places = [i for i, (_, given) in enumerate(rows) if given["max_new_tokens"] == most]
            given = dict(rows[places[0]][1])
            assert (given.pop("n"), given.pop("max_new_tokens")) == (1, most)
            seeds = [rows[i][1]["sampling_seed"] for i in places]
            del given["sampling_seed"]
            drawn = sample(self.denoiser, [rows[i][0] for i in places], self.config(most, **given), seed=seeds)
            for i, one in zip(places, drawn, strict=True):
                replies[i] = to_reply(one, self.block)
                replies[i]["meta_info"]["weight_version"] = self.version
        return self.spoil(replies) or replies

    def update(self, body):
        self.weights = load_file(Path(body["model_path"]) / "model.safetensors")
        if self.load:
            self.denoiser.model.load_state_dict(self.weights, strict=False)
        self.version = body["weight_version"]
        return {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def answer(self, path, body, headers):
        with self.lock:
            if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}":
                return {"error": f"no key but {headers.get('Authorization')}"}, 401
            self.asked.append((path, body))
            if (refused := self.refuse(path, len(self.asked))) is not None:
                return refused
            if path == "/get_model_info":
                return {"model_path": "tiny", "is_generation": True, "weight_version": self.version}, 200
            return {"/generate": self.generate, "/update_weights_from_disk": self.update}[path](body), 200


@contextmanager
def serving(engine):
    """The engine behind HTTP; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body):
            value, status = engine.answer(self.path, body, dict(self.headers))
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
