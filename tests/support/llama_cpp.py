"""Ask llama.cpp, which runs in this process as the server of the package xllamacpp."""

import json
import urllib.request


class LlamaCpp:
    """A GGUF file in llama.cpp, with one thread, and keys and values in 32 bits."""

    def __init__(self, path, context=512):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.port = 0  # any free one
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.fit_params = parameters.warmup = False
        parameters.verbosity = -1
        self.server = xllamacpp.Server(parameters)

    def ask(self, endpoint, **body):
        request = urllib.request.Request(f"{self.server.listening_address}/{endpoint}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def ids(self, text):
        return self.ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def greedy(self, prompt, num_tokens):
        """The text, its ids, and for each id the log-probabilities of the best five, by id."""
        answer = self.ask(
            "completion", prompt=prompt, n_predict=num_tokens, temperature=0, n_probs=5, return_tokens=True
        )
        best = [{each["id"]: each["logprob"] for each in step["top_logprobs"]}
                for step in answer["completion_probabilities"]]  # fmt: skip
        return answer["content"], answer["tokens"], best
