"""The generated tasks use these common English nouns."""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """
    apple river stone cloud chair table bread horse light music paper plant queen sugar tiger
    train water wheat zebra beach brick candle castle circle copper corner cotton desert dinner
    doctor dragon eagle engine family farmer feather finger flower forest garden ginger glass
    grape guitar hammer harbor honey island jacket jungle kettle kitchen ladder lemon letter
    lizard market meadow mirror monkey mountain needle ocean office onion orange oven palace panda
    parrot pencil pepper piano picnic pillow pirate planet pocket potato prince pumpkin rabbit
    rocket saddle salad school shadow shirt silver singer sister soldier spider spoon spring
    square squirrel station summer sunset temple throne ticket tomato tower trumpet tunnel turtle
    valley velvet village violin walnut wagon whale window winter wizard wolf yellow anchor basket
    beetle bottle bridge bucket butter button cactus camel camera canal canyon carpet carrot
    cherry chicken church clock coffee cookie crown cradle dancer diamond donkey drum duck elbow
    falcon fence ferry field flame flute fox frog garlic giant glove goat gold goose harp hawk
    helmet hill hotel ice insect iron ivory jewel judge juice knife lake lamp leaf leopard lion
    lobster magnet maple marble mask melon metal milk moon moss mouse museum nest night north
    novel nurse oak olive otter owl oyster paint pearl peach pig pilot pine plum pond poet pool
    rain raven ring road robin roof rope rose ruby sailor salmon salt sand scarf seal seed shark
    sheep shell ship shoe silk skate sky snail snake snow soap sofa soup south spark star steam
    storm straw street swan sword syrup teacher thread thunder toast torch tree truck tulip uncle
    umbrella vase wall wave wheel whistle willow wind wine wing wood wool worm yard acorn album
    alley almond amber angel arrow artist atlas autumn badge bagel baker ballet bamboo banana
    banjo barley barn basin bean bear berry bike bird biscuit blanket blossom board boat bone book
    boot bowl box branch brush bubble buffalo bull bus cabin cable cage cake candy canoe cape
    captain cargo cart cat cave cedar cello chain chalk cheese chess chest child chimney cider
    cinema city clay cliff clover coach coal coast coat cobra coconut coin comet coral cord corn
    couch cow crab crane cricket crow cube curtain daisy deer desk dice dish dog doll dolphin door
    dove dress drill dust east echo egg elephant elm emerald empire evening
    """.split()  # noqa: SIM905  # easier to read and to extend
)
"""All different, lower case, one word each."""
