"""GGUF files are written here without building llama.cpp.

families     names and numbers of each model family
vocabulary   the tokenizer
ggml         ggml's own quantisation, called in a prebuilt library
mixture      the type of each tensor
write        a file, streamed
lora         the adapter alone
llama        llama.cpp in a child process, for the proof
"""
