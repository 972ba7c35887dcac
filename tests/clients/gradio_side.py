"""gradio's `load_chat` shows a model behind our server; `python gradio_side.py URL KEY` prints a line of JSON."""

from __future__ import annotations

import json
import os
import sys

import gradio
from gradio_client import Client

URL, KEY = sys.argv[1:3]

chat = gradio.load_chat(URL, model="tiny", token=KEY, api_name="chat")
chat.launch(prevent_thread_lock=True, quiet=True, show_error=True, server_name="127.0.0.1")
client = Client(chat.local_url, verbose=False)
answers = []
for text in ("Say a thing", "Say another"):
    answers.append(client.predict({"text": text, "files": []}, api_name="/chat"))
    client.reset_session()  # gradio cannot read back the turns that its own API keeps of such a page
sys.stdout.write("\n" + json.dumps({"answers": answers}) + "\n")
sys.stdout.flush()
os._exit(0)
