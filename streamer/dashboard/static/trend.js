// Sparklines on canvases: score 0 to 1 over the last updates, the newest at the right edge.

export const TREND_UPDATES = 60;

const height = 30; // as in style.css

export const drawTrend = (canvas, width, points, threshold, palette) => {
  const ratio = window.devicePixelRatio || 1;
  if (!width) return;
  if (canvas.width !== Math.round(width * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const [top, bottom] = [2.5, height - 2.5];
  const y = (score) => bottom - score * (bottom - top);
  const step = (width - 5) / (TREND_UPDATES - 1);
  const x = (index) => width - 3 - (points.length - 1 - index) * step;

  context.strokeStyle = palette.grid;
  context.lineWidth = 1;
  context.setLineDash([2, 3]);
  context.beginPath();
  context.moveTo(0, y(threshold));
  context.lineTo(width, y(threshold));
  context.stroke();
  context.setLineDash([]);

  const latest = points.at(-1);
  const high = latest !== undefined && latest !== null && latest >= threshold;
  context.strokeStyle = high ? palette.high : palette.low;
  context.fillStyle = high ? palette.highFill : palette.lowFill;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  let start = 0;
  while (start < points.length) {
    if (points[start] === null) {
      start += 1;
      continue;
    }
    let end = start;
    context.beginPath();
    context.moveTo(x(start), y(points[start]));
    while (end + 1 < points.length && points[end + 1] !== null) {
      end += 1;
      context.lineTo(x(end), y(points[end]));
    }
    context.stroke();
    context.lineTo(x(end), bottom);
    context.lineTo(x(start), bottom);
    context.fill();
    start = end + 1;
  }
  if (latest !== undefined && latest !== null) {
    context.fillStyle = context.strokeStyle;
    context.beginPath();
    context.arc(width - 3, y(latest), 2, 0, 7);
    context.fill();
  }
};
