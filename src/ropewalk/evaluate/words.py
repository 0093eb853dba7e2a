"""Words for made-up texts: common English ones, and invented names of people and places.

No word of `ADJECTIVES`, `NOUNS` and `VERBS` occurs inside another, and no place inside a name:
answers are looked for as parts of a text, where one word would otherwise be found in the other.
"""

ADJECTIVES = tuple(
    """
    aged amber ample angry azure basic blank blind bold brave brief bright brisk bronze brown calm
    careful cheap cheerful civil clean clear clever clumsy coarse common cool copper coral costly
    crimson crisp crooked cruel curious curly daily damp dapper daring dark dear deep dense dim
    distant dizzy dull dusty eager early easy elder empty equal exact faint fair familiar famous
    fancy fast fierce final firm flat foggy fond foreign formal fragile free frequent fresh
    friendly frosty frozen full funny gentle giant glad gloomy golden grand grateful grave gray
    greedy grim handy happy harsh hasty heavy hollow huge humble hungry idle indigo jolly keen
    kind large lazy lively local lofty lonely loose loud loyal lucky magenta maroon mellow merry
    mighty mild misty modern modest muddy navy neat nervous nimble noble noisy normal novel odd
    olive orange pale patient pleasant polite poor precise proud public purple quaint quick quiet
    rapid rare ready remote rich rigid ripe robust rough round royal rude rural rusty sad salty
    scarlet secret serious sharp shiny short shy silent silver simple sincere slender slow small
    smooth sober soft solid sour spare speedy spicy steady steep stern sticky stiff strange strict
    strong sturdy subtle sudden sunny sweet swift tall tame tender thick thin tidy tiny tough
    tropical true urban useful usual vague vast violet vivid warm wary weak wealthy weary weekly
    wicked wide wild windy wise witty wooden young zealous
    """.split()
)

NOUNS = tuple(
    """
    acorn actor anchor animal ankle anvil apple apron arrow atlas attic autumn badge balcony banjo
    bank barn barrel basket beach beacon bench bicycle bird biscuit board boat bottle bread brick
    bridge brook broom brush bucket button cabin cable cactus camel camera candle canoe canyon
    carpet carrot castle cattle cave cellar chain chair chalk cheese cherry chess chest chimney
    church circle clock clover coach coast coffee coin comet compass cookie corner cotton cousin
    cradle crane crayon cricket crown crystal cup curtain cushion daisy desert desk dinner doctor
    dolphin donkey door dragon dress drum eagle easel elbow engine envelope falcon farm feather
    fence fern ferry fiddle field finger flag flame flower flute forest fork fountain fox frame
    funnel garden garlic gate giraffe glove goat grape guitar hammer hammock harbor harvest hat
    hedge helmet herring hill honey hook horse hotel island ivory jacket jar jewel journal jungle
    kettle kitchen kite knife knot ladder lake lamp lantern lawyer leaf lemon letter library lily
    lizard locket lumber magnet mango maple market marsh mattress meadow melon mirror mitten
    monkey moon morning mountain museum needle nest notebook oak oasis ocean onion orchard otter
    oven owl oyster paddle palace panda paper parcel parrot pasture peach pear pebble pencil
    pepper piano pigeon pillow pilot pine pirate pizza planet plank plate plough pocket poet pond
    potato prairie puddle pumpkin puppet puzzle quarry quilt rabbit raft rain ranch raven ribbon
    river road robin rocket roof rope rose sail salad sandal scarf school seed shark sheep shelf
    shell shirt shoe shovel sister skate sled snail soap sofa spade spider sponge spoon square
    squirrel station stone stove summer swan table tailor temple tent thumb ticket tiger timber
    tomato tower tree trumpet tulip tunnel turtle umbrella uncle valley vase velvet village vine
    violin voyage wagon wall walnut waltz wheel whistle willow window winter wizard wolf wool yard
    zebra
    """.split()
)

VERBS = tuple(
    """
    accept admire agree allow answer argue arrange arrive attend bake balance begin behave believe
    belong bless borrow bounce breathe build bury carry catch chase choose climb collect combine
    compare complain confess cough count cover crawl create cross dance decide deliver depend
    describe deserve destroy discuss divide draw dream drift drink drive earn enjoy enter escape
    examine exist explain explore fetch finish float follow forget forgive gather giggle grow
    guess guide hang hesitate hide hurry imagine improve include inform invent invite juggle jump
    knit knock laugh launch listen manage measure melt mention mix mumble notice obey observe
    offer open order paint pause perform persuade plant polish pour praise prefer prepare pretend
    prevent promise protect punish push receive refuse remember remind remove repair repeat reply
    rescue retire return roam rub scatter scold scratch scream search select settle shake shiver
    shout shrink sing skip sleep smile sneeze solve stumble succeed suggest surprise sweep swim
    teach tease throw tickle travel tremble trust twist unite vanish visit wait walk wander wash
    watch whisper wonder worry wrap write yawn
    """.split()
)

GIVEN_NAMES = tuple(
    """
    Abel Ada Alma Anton Astrid Basil Beatrix Bruno Casper Cecily Conrad Cyrus Dagmar Delia Dorian
    Edda Elias Enid Ezra Felix Flora Freda Gideon Greta Gustav Harriet Hedwig Hugo Imogen Ingrid
    Isidor Jasper Juno Kasimir Lavinia Leopold Linus Lucinda Magnus Marta Mavis Miriam Nestor Nora
    Octavia Odette Oswald Otto Petra Phoebe Quentin Ramona Rufus Selma Silas Tabitha Thaddeus
    Tilda Ulrich Ursula Vera Viktor Wanda Wilbur Xenia Yorick Yvette Zelda
    """.split()
)

FAMILY_NAMES = tuple(
    """
    Abernath Almquist Arkwell Barrowin Bexley Birdsall Blankenau Boscawen Brackett Brindley
    Calloway Carnaby Chadwell Clavering Corbin Crannock Dallimore Darrow Deverell Dunmore Eastlake
    Eldridge Elphick Fairweather Fanshawe Fenwick Fothergill Galbraith Garrick Gillespie
    Goodfellow Grimshaw Hallam Hathersage Hepburn Holloway Inglewood Ironside Jellicoe Jessop
    Kellaway Kimber Lambourne Larkin Lockhart Ludlow Malory Marchbank Merriweather Middlemarch
    Nettleton Norwood Oakshott Ormerod Osgood Pargeter Pemberton Penhallow Quarles Quillfeather
    Radcliffe Ravensby Rosewarne Sallow Sedgewick Selwyn Sorrell Stanhope Tarrant Thackeray
    Tindall Trelawney Underhay Vavasour Wakefield Wetherby Whitlock Winslow Woodruff Yardley
    """.split()
)

PLACES = tuple(
    """
    Aldermere Amberholt Ashcombe Averleigh Bellwick Brackenford Bramhurst Brightsea Burnholm
    Calderby Carrowmoor Cloverdale Cobblestoke Coldwater Dapplemere Deepwell Drumnoch Dunsfell
    Eastermoor Elmsworth Fallowfield Farthingale Fernhollow Gallowglen Goldthorpe Greywater
    Hartsbourne Hazelmoor Hollingfold Ivinghoe Kestrelby Kingsmarsh Lambsgate Larchmont Lindenau
    Longstrand Marrowdale Mistleigh Netherfold Nightingham Oldcastle Otterbourne Pinehaven Quenton
    Redcliff Rookhampton Rushmere Saltmarsh Silverdown Skelwith Stonewick Summerton Thistledown
    Thornbury Underwick Velmere Westerleigh Whitewell Willowbrook Wintershaw Yarrowby Zennorfield
    """.split()
)

TRADES = tuple(
    """
    baker beekeeper blacksmith bookbinder brewer butcher carpenter clockmaker cobbler cooper dyer
    ferryman fisherman gardener glassblower goldsmith hatter innkeeper joiner locksmith mason
    miller piper porter potter printer ropemaker saddler sailmaker shepherd stonecutter tanner
    thatcher tinsmith weaver wheelwright
    """.split()
)

ALL = ADJECTIVES + NOUNS + VERBS
