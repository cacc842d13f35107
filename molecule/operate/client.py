"""What OpenAI's own Python client gets from the gateway: client.py URL CA MODEL GOOD_KEY LIMITED_KEY

Prints what happened as JSON; the caller judges.
"""

import json
import ssl
import sys
import time

import openai

CONTENT = [{"role": "user", "content": "The capital of France is"}]


def main(url: str, ca: str, model: str, good_key: str, limited_key: str) -> dict:
    def client(key: str, **options) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=ca))
        return openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http, **options)

    def error_of(ask) -> dict:
        """The client's own class of the error, and what it read in it."""
        try:
            ask()
        except openai.APIStatusError as problem:
            body = problem.body if isinstance(problem.body, dict) else {}
            headers = {name: problem.response.headers.get(name) for name in ("retry-after", "x-request-id")}
            return {"class": type(problem).__name__, "status": problem.status_code, "code": body.get("code")} | headers
        except openai.APIConnectionError as problem:
            return {"class": type(problem).__name__, "cause": str(problem.__cause__)}
        return {"class": "none"}

    user = client(good_key)
    chat = user.chat.completions.create(model=model, messages=CONTENT, max_tokens=8)
    arrivals, text, used = [], "", None
    begin = time.monotonic()
    stream = user.chat.completions.create(
        model=model, messages=CONTENT, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        if chunk.usage:
            used = chunk.usage.completion_tokens
        elif chunk.choices and chunk.choices[0].delta.content:
            arrivals.append(time.monotonic() - begin)
            text += chunk.choices[0].delta.content
    plain = client(limited_key, max_retries=0)
    limited = [error_of(lambda: plain.models.list()) for _ in range(8)]
    patient = client(limited_key, max_retries=4).models.list()
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key=good_key, max_retries=0)
    return {
        "models": sorted(entry.id for entry in user.models.list()),
        "chat": chat.choices[0].message.content,
        "completion": user.completions.create(model=model, prompt="The capital of France is").choices[0].text,
        "stream": text.strip(),
        "stream_tokens": used,
        "stream_spread": round(arrivals[-1] - arrivals[0], 3),
        "wrong_key": error_of(lambda: client("wrong-key-0123456789abcdef", max_retries=0).models.list()),
        "unknown_model": error_of(lambda: user.chat.completions.create(model="nope", messages=CONTENT)),
        "limited": [error["class"] for error in limited],
        "limit": next((error for error in limited if error["class"] != "none"), None),
        "patient": len(list(patient)),
        "without_ca": error_of(lambda: stranger.models.list()),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:6]), indent=1))
