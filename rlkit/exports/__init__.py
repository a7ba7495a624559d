"""A run's policy leaves the house here, in formats of others, with proof that it is the same model.

formats      the formats and their bounds
trained      what a run trained; its base stays on disk
stream       the merged weights, one tensor at a time
hf_folder    folders in Hugging Face's format, in 16 or 4 bits
gguf/        GGUF files, their quantisation, their tokenizer, and a child process with llama.cpp
compressed   layers in the formats of compressed-tensors
calibrated   GPTQ and AWQ by llmcompressor, in a child process
reference    log-probs and answers of the trained policy on held-out prompts
proof        an export loaded again and compared with them; vllm_loader: vLLM, in a child
compare      the figures of a comparison
card         the model card; modelfile: the file for Ollama
request      what is asked for, and what is refused at once
export       all of it in order, nothing half-written
"""
