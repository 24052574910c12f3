// Colours of the sockets of this pack: a warm one for guidances, its neighbours for what shapes them.
import { app } from '../../scripts/app.js'

const COLOURS = {
  GCFG_GUIDANCE: '#ffb454',
  GCFG_SCHEDULE: '#7fd77f',
  GCFG_SHAPING: '#c792ea',
  GCFG_PERFORMANCE: '#75839a',
  GCFG_IMAGES: '#64b5f6',
}

function paint() {
  for (const [type, colour] of Object.entries(COLOURS)) {
    LGraphCanvas.link_type_colors[type] = colour // wires
    app.canvas.default_connection_color_byType[type] = colour // sockets of the classic renderer
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour) // and of the Vue one
  }
}

// The frontend empties the colours of types that its palette does not name whenever it loads one.
app.registerExtension({
  name: 'gcfg.colours',
  setup() {
    paint()
    app.ui.settings.addEventListener('Comfy.ColorPalette.change', () => setTimeout(paint))
  },
  afterConfigureGraph: paint,
})
