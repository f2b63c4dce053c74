"""Chat templates of our own, each with what the template of a family of models makes use of; see test_chat_templates.py."""

# ruff: noqa: RUF001 - control tokens of some families have wide bars
from __future__ import annotations

TEMPLATES = {
    # Special tokens from variables, a header a turn, trimmed contents.
    "llama-3": r"""{% set turns = messages %}{% for turn in turns %}{% set text = '<|start_header_id|>' + turn['role'] + '<|end_header_id|>

' + turn['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}""",
    # A date, tools as None, the system message taken off by a slice.
    "llama-3.1": r"""{{- bos_token }}
{%- if not day is defined %}{% set day = strftime_now("%d %b %Y") if strftime_now is defined else "1 Jan 2025" %}{% endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instruction = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instruction = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}{{- "Tools: ipython\n" }}{% endif %}
{{- "Today is " + day + ".\n\n" }}
{{- instruction }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""",
    # A default system message; tools as JSON lines.
    "qwen2.5": r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nBe of help.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}""",
    # A namespace, messages in reverse, thinking cut out of what the assistant has said, enable_thinking.
    "qwen3": r"""{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set at = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = at %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set said = message.content if message.content is string else '' %}
    {%- if message.role != "assistant" %}
        {{- '<|im_start|>' + message.role + '\n' + said + '<|im_end|>' + '\n' }}
    {%- else %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in said %}
            {%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + said }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}""",
    # Roles that alternate, else an error.
    "mistral-v1": r"""{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('The roles must take turns: user, assistant, user, ...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}{{ raise_exception('There are two roles.') }}{% endif %}{% endfor %}""",
    # The system message in the last user's turn; filters that pick messages.
    "mistral-v3": r"""{%- if messages[0]["role"] == "system" %}
    {%- set instruction = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set asked = rest | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.count = 0 %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and instruction is defined %}
            {{- "[INST] " + instruction + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " ~ message["content"] ~ "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant take part, with a system message before them") }}
    {%- endif %}
    {%- set ns.count = ns.count + (message == asked[-1]) | int %}
{%- endfor %}
{%- if ns.count > 1 and asked | length == 1 %}{{- raise_exception("never") }}{%- endif %}""",
    # A date and the day before, in a macro; contents in blocks.
    "mistral-small": r"""{%- set today = strftime_now("%Y-%m-%d") %}
{%- set default = "You answer. The date is " + today + "." %}
{%- macro spread(content) -%}
    {%- if content is string -%}{{ content }}{%- else -%}{%- for block in content -%}{{ block['text'] }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set instruction, turns = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set instruction, turns = default, messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + instruction + '[/SYSTEM_PROMPT]' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + spread(message['content']) + '[/INST]' }}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- spread(message['content']) + eos_token }}
    {%- endif %}
{%- endfor %}""",
    # No system role; roles by another name.
    "gemma-2": r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('This model has no system role') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model
' }}{% endif %}""",
    # The system message before the first user's; blocks with white space cut away on both sides.
    "gemma-3": r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set before = messages[0]['content'] + '

' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set before = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + (before if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {{ raise_exception("there are no images here") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model
' }}
{%- endif -%}""",
    # A control token for each role, written out; eos_token at the end.
    "phi-3": r"""{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{ '<|system|>
' + message['content'] + '<|end|>
' }}{% elif message['role'] == 'user' %}{{ '<|user|>
' + message['content'] + '<|end|>
' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>
' + message['content'] + '<|end|>
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}""",
    # Control tokens made of a role's name.
    "phi-4-mini": r"""{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}""",
    # What the assistant says in {% generation %}.
    "phi-4-reasoning": r"""<|im_start|>system<|im_sep|>Think first.<|im_end|>{% for message in messages %}{% if (message['role'] == 'user') %}{{ '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}{% elif (message['role'] == 'assistant') %}{{ '<|im_start|>assistant<|im_sep|>' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}""",
    # A default system message within the loop.
    "smollm2": r"""{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are of help, and small<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    # {% generation %} with white space cut, a mode by a word in the system message, a date, blocks of text as variables.
    "smollm3": r"""{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- if messages[0].role == "system" -%}
  {%- set instruction = messages[0].content -%}
  {%- if "/no_think" in instruction -%}
    {%- set mode = "/no_think" -%}
  {%- elif "/think" in instruction -%}
    {%- set mode = "/think" -%}
  {%- endif -%}
  {%- set own = instruction.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\n" -}}
{%- set today = strftime_now("%d %B %Y") -%}
## About
Date: {{ today }}
Mode: {{ mode }}

{% if own -%}
{{- own + "\n\n" -}}
{%- elif mode == "/think" -%}
{{- "Think before you answer.\n\n" -}}
{%- endif -%}
{{- "<|im_end|>\n" -}}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else "" -%}
  {%- if message.role == "user" -%}
    {{ "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" }}
  {%- elif message.role == "assistant" -%}
    {% generation %}
    {%- if mode == "/think" -%}
      {{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- else -%}
      {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- endif -%}
    {% endgeneration %}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\n" if mode == "/think" else "<|im_start|>assistant\n<think>\n\n</think>\n" -}}
{%- endif -%}""",
    # A namespace that collects the system messages; what stands before `</think>` is left out.
    "deepseek-r1": r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(first=true, tool=false, system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% if ns.first %}{% set ns.system = ns.system + message['content'] %}{% set ns.first = false %}{% else %}{% set ns.system = ns.system + '

' + message['content'] %}{% endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜><think>\n' }}{% endif %}""",
    # eos_token after each turn; an unused alternative per role.
    "zephyr": r"""{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "chatml": r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    # Documents and tools that are None; `~`, loops that break and continue; JSON with options.
    "command-r": r"""{{ bos_token }}{%- if documents -%}<|START_OF_TURN_TOKEN|>{{ documents | tojson(indent=2) }}{%- endif -%}
{%- if tools is not none or documents is not none -%}{{ raise_exception('nothing was given') }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and not loop.first %}{% continue %}{% endif -%}
{%- if loop.index > 40 %}{% break %}{% endif -%}
<|START_OF_TURN_TOKEN|>
{%- if message.role == 'user' -%}<|USER_TOKEN|>{%- elif message.role == 'system' -%}<|SYSTEM_TOKEN|>{%- else -%}<|CHATBOT_TOKEN|>{%- endif -%}
{{ message.content | trim ~ '<|END_OF_TURN_TOKEN|>' }}
{%- endfor -%}
{{ {'z': 1, 'é': [1, 'ü<b>']} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}""",
    # Parts put together with a filter that joins; a date.
    "granite-3": r"""{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}{%- else %}{%- set system = ["Date: " ~ strftime_now('%B %d, %Y'), "You answer."] | join(".\n") %}{%- set rest = messages %}{%- endif %}{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}{%- for message in rest %}{{- ['<|start_of_role|>', message['role'], '<|end_of_role|>', message['content'], '<|end_of_text|>\n'] | join }}{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}{{- '<|end_of_role|>' }}{%- endif %}{%- endfor %}""",
    # eos_token in every turn but the last; a macro with defaults that formats.
    "olmo-2": r"""{%- macro head(role, end='\n') %}{{ '<|%s|>' % role }}{{ end }}{% endmacro -%}
{{ bos_token }}{% for message in messages %}{{ head(message['role']) }}{{ message['content'] }}{% if message['role'] == 'assistant' and not loop.last %}{{ eos_token ~ '\n' }}{% elif message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% if loop.last and add_generation_prompt %}{{ head(role='assistant') }}{% endif %}{% endfor %}""",
    # Texts with replacements, and no generation prompt at all.
    "falcon": r"""{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{{ message['role'] | capitalize + ': ' + message['content'].strip().replace('\r\n', '\n').replace('\n\n', '\n') }}{% endfor %}{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}""",
    "internlm-2": r"""{{ bos_token }}{% for message in messages %}{{ '<|im_start|>{}\n{}{}'.format(message['role'], message['content'], '<|im_end|>\n') }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' | safe }}{% endif %}""",
    # A block of text as a variable, with a filter on it; the length of contents.
    "nemotron": r"""{% set lead %}<extra_id_0>System
{% endset %}{{ lead }}{% for message in messages %}{% if message['role'] == 'system' %}
{{ message['content'].strip() }}{% endif %}{% endfor %}
{% filter trim %}   {% for message in messages if message['role'] != 'system' %}
<extra_id_1>{{ message['role'] | title }}
{{ message['content'][:2000] }}{% if message['content'] | length > 2000 %}...{% endif %}
{% endfor %}   {% endfilter %}
{% if add_generation_prompt %}
<extra_id_1>Assistant
{% endif %}""",
    # Macros that call macros, channels, a recursive loop, an inline condition without else.
    "gpt-oss": r"""{%- macro header(role, channel=none) -%}
    {{- "<|start|>" ~ role ~ ("<|channel|>" ~ channel if channel) ~ "<|message|>" -}}
{%- endmacro -%}
{%- macro system() -%}
    {{- "You chat.\nCurrent date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
    {%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\n\n" }}
    {{- "# Valid channels: " + ["analysis", "final"] | join(", ") + "." }}
{%- endmacro -%}
{{- header("system") }}{{ system() }}{{ "<|end|>" }}
{%- if messages[0].role == "system" %}{%- set developer, rest = messages[0].content, messages[1:] %}{%- else %}{%- set developer, rest = "", messages %}{%- endif %}
{%- if developer %}{{- header("developer") }}{{ "# Instructions\n\n" ~ developer ~ "\n\n" }}{{ "<|end|>" }}{%- endif %}
{%- for message in rest recursive -%}
    {%- if message.role == "assistant" -%}
        {%- if "<|channel|>analysis<|message|>" in message.content -%}{{- raise_exception("no control tokens in a message") }}{%- endif -%}
        {{- header("assistant", "final") }}{{ message.content }}{{ "<|return|>" if loop.last and not add_generation_prompt else "<|end|>" }}
    {%- else -%}
        {{- header(message.role) }}{{ message.content }}{{ "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}""",
    # Tools and their types in macros that call themselves, by dict methods.
    "hermes": r"""{%- macro kind(spec) -%}
    {%- set names = {"string": "str", "number": "float", "array": "list"} -%}
    {%- if spec.type in names -%}{{- names[spec.type] -}}{%- if spec.get('items') -%}[{{ kind(spec['items']) }}]{%- endif -%}{%- else -%}any{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}<|im_start|>system
<tools>{{ kind({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}) }}{% for name, value in {"b": 1, "a": {"x": none}}.items() | sort %} {{ name }}={{ value | tojson }}{% endfor %}</tools><|im_end|>
{% for message in messages -%}
{%- if message.role == "assistant" and message.tool_calls is defined -%}{{ raise_exception("none are made") }}{%- endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif %}""",
    # Upper-case roles, a separator that depends on who has spoken.
    "vicuna": r"""{% if messages[0].role == 'system' %}{{ messages[0].content ~ ' ' }}{% endif %}{% for message in messages if message.role in ['user', 'assistant'] %}{{ message.role | upper }}: {{ message.content | string }}{{ loop.cycle(' ', eos_token) }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}""",
}
