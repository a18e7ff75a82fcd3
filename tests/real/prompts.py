"""Thirty prompts of many kinds."""

STORY = (
    "The keeper of the lighthouse wrote down what he saw: at {} o'clock a ship with {} sails went "
    "by, and {} gulls sat on the rail. "
)
LONG = "".join(STORY.format(i % 12 + 1, i % 7 + 1, 3 * i) for i in range(40)) + "In the end,"
"""Of about 1,500 tokens."""

TEXTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "1, 2, 3, 4, 5,",
    "The quick brown fox",
    "In 1969, Neil Armstrong",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "import numpy as np\n\nx = np.zeros((3, 4))\nprint(x.shape)  #",
    "for (int i = 0; i < 10; i++) {\n\tprintf(",
    "SELECT name, COUNT(*) FROM users WHERE age > 18 GROUP BY",
    '{"name": "Alice", "age": 30, "city":',
    "<html>\n  <body>\n    <h1>",
    "😀 😃 😄 😁 and 🐶 🐱",
    "I ❤️ Paris 🇫🇷 because 👩‍👩‍👧",
    "法国的首都是",
    "你好,世界!今天天气",
    "日本の首都は",
    "Привет, мир! Меня зовут",
    "Über die Größe des Universums",
    "naïve café déjà vu",
    "  leading spaces,   7 of  them  ",
    "\n\n# Heading\n\n- one\n- two\n",
    "x = 12345.6789 * 10^-3 =",
    "a",
    LONG,
]

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write a haiku about the sea. 🌊"}],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Is water wet?"},
    ],
    [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ],
    [{"role": "user", "content": "用中文说你好。"}],
]
