"""Chat templates of the kinds in use."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start|>system<|head|>\n\nToday: {{ date_string }}\n\n{{ system }}<|eot|>"
    "{% for m in messages %}<|start|>{{ m['role'] }}<|head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|head|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% else %}{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}"
)
THINKING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|start|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|head|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|head|><think>\n{% endif %}"
)
SPELLED = (  # a template without control tokens
    "{% for m in messages %}{{ '### ' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "llama 3": LLAMA3, "mistral": MISTRAL, "zephyr": ZEPHYR, "thinking": THINKING, "spelled": SPELLED,
}  # fmt: skip
