"""gradio's `load_chat` shows a model behind our server; `python gradio_side.py URL KEY` prints a line of JSON."""

from __future__ import annotations

import json
import os
import sys

import gradio
from gradio_client import Client

URL, KEY = sys.argv[1:3]

chat = gradio.load_chat(URL, model="tiny", token=KEY, api_name="chat")
chat.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
client = Client(chat.local_url, verbose=False)
answers = [client.predict(text, api_name="/chat") for text in ("Say a thing", "Say another")]
sys.stdout.write("\n" + json.dumps({"answers": answers}) + "\n")
sys.stdout.flush()
chat.close()
os._exit(0)
